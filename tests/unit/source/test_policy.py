from pathlib import Path

import pytest

from batchdet.errors import ImageError
from batchdet.source.policy import UriPolicy


def _refusal(policy: UriPolicy, uri: str) -> str:
    with pytest.raises(ImageError) as caught:
        policy.check(uri)
    assert caught.value.code == "refused_uri"
    return caught.value.message


@pytest.mark.parametrize(
    ("listed", "uri"),
    [
        ("a.jpg", "s3://b/lists/a.jpg"),
        ("x/a.jpg", "s3://b/lists/x/a.jpg"),
        ("../img/a.jpg", "s3://b/img/a.jpg"),
        ("s3://other/a.jpg", "s3://other/a.jpg"),
        ("S3://other/A.jpg", "s3://other/A.jpg"),
        ("gs://b/a.jpg", "gs://b/a.jpg"),
        ("abfs://c@account.dfs.core.windows.net/a.jpg", "abfs://c@account.dfs.core.windows.net/a.jpg"),
        ("hf://datasets/o/n@main/a.jpg", "hf://datasets/o/n@main/a.jpg"),
    ],
)
def test_default_of_a_remote_list(listed: str, uri: str) -> None:
    allowed = UriPolicy("s3://b/lists/l.csv", ()).check(listed)
    assert (allowed.uri, allowed.public_only) == (uri, False)


@pytest.mark.parametrize(
    "uri",
    [
        "/etc/passwd", "~/x.jpg", "file:///etc/passwd", "FILE:///etc/passwd", "local:///etc/passwd",
        "data:image/png,x", "memory://x", "http://example.com/a.jpg", "https://example.com/a.jpg", "ftp://h/a",
        "zip://a.jpg", "github://o:r@/x",
        "filecache::s3://b/x", "s3://b/x::http://169.254.169.254/", "reference://", "s3://b/../c/x.jpg",
        "../../../x.jpg", "s3://b/%2e%2e/x.jpg", "http:/x", "a\0b.jpg",
        "a\nb.jpg", "file://", "FILE:///", "file:", "s3:", "smb://h/x", "sftp://h/x", "ssh://h/x", "jar:x",
    ],
)  # fmt: skip
@pytest.mark.acceptance("S11")
def test_refused_by_a_remote_list(uri: str) -> None:
    _refusal(UriPolicy("s3://b/l.csv", ()), uri)


@pytest.mark.acceptance("S11")
def test_local_list_allows_files_below_its_folder(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    (folder / "sub/a.jpg").write_bytes(b"x")
    (tmp_path / "secret.jpg").write_bytes(b"x")
    (tmp_path / "in-other").mkdir()
    (tmp_path / "in-other/a.jpg").write_bytes(b"x")
    (folder / "link.jpg").symlink_to(tmp_path / "secret.jpg")
    (folder / "inside.jpg").symlink_to(folder / "sub/a.jpg")
    policy = UriPolicy(str(folder / "l.csv"), ())
    for good in ["sub/a.jpg", "./sub/a.jpg", "sub/../sub/a.jpg", f"{folder}/sub/a.jpg", f"file://{folder}/sub/a.jpg"]:
        assert policy.check(good).uri == f"{folder}/sub/a.jpg"
    assert policy.check("inside.jpg").uri == f"{folder}/inside.jpg"
    assert policy.check("frame_12:30:01.jpg").uri == f"{folder}/frame_12:30:01.jpg"
    assert policy.check("s3://b/x.jpg").uri == "s3://b/x.jpg"
    for bad in ["../secret.jpg", "link.jpg", f"{tmp_path}/secret.jpg", "../in-other/a.jpg", f"{folder}-other/a.jpg"]:
        assert "outside the folders" in _refusal(policy, bad)


@pytest.mark.acceptance("S11")
def test_prefixes_replace_the_default_and_end_at_components(tmp_path: Path) -> None:
    policy = UriPolicy("s3://b/l.csv", ("s3://b/img", "https://cdn.example.com/pub/", "memory://", str(tmp_path)))
    for good in [
        "s3://b/img/a.jpg",
        "img/a.jpg",
        "https://cdn.example.com/pub/a.jpg",
        "memory://x.jpg",
        f"{tmp_path}/a.jpg",
    ]:
        policy.check(good)
    bad = [
        "s3://b/img2/a.jpg", "s3://b/a.jpg", "s3://c/img/a.jpg", "a.jpg", "gs://b/img/a.jpg", "/etc/passwd",
        "https://cdn.example.com/private/a.jpg", "https://cdn.example.com.evil.org/pub/a.jpg",
        "https://cdn.example.com@evil.org/pub/a.jpg", "https://evil.org/https://cdn.example.com/pub/a.jpg",
        "https://cdn.example.com/pub/../private/a.jpg", "https://cdn.example.com/pub/%2e%2e/private/a.jpg",
        "https://cdn.example.com:8443/pub/a.jpg", "https://cdn.example.com\\@evil.org/pub/a.jpg",
        "http://cdn.example.com/pub/a.jpg", f"{tmp_path}-other/a.jpg", f"{tmp_path}/../x.jpg",
        "https://cdn.example.com#@evil.org/pub/x", "https://cdn.example.com?@evil.org/pub/x",
    ]  # fmt: skip
    for uri in bad:
        _refusal(policy, uri)


def test_a_host_that_the_list_chose_must_be_public() -> None:
    policy = UriPolicy("s3://b/l.csv", ("https://", "http://10.0.0.1/"))
    assert policy.check("https://example.com/a.jpg").public_only
    assert not policy.check("http://10.0.0.1/a.jpg").public_only
    _refusal(policy, "http://10.0.0.2/a.jpg")


def test_long_entries_are_cut_in_messages() -> None:
    assert len(_refusal(UriPolicy("s3://b/l.csv", ()), "data:" + "A" * 100_000)) < 400
