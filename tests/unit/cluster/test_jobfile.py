from pathlib import Path

import pytest

from batchdet.cluster.jobfile import is_local, read_job_file, written_value
from batchdet.errors import SpecError
from batchdet.specfile import parse_job

JOB = """\
# a comment with ${NOT_A_VARIABLE}
name: ${JOB_NAME}
source: {uri: s3://${BUCKET}/shards/*.tar}
model: {uri: "builtin:sample", sha256: null, classes: ["no", "1e3", "012", person]}
output: {uri: "s3://${BUCKET}/labels"}
"""


@pytest.fixture
def job(tmp_path: Path) -> str:
    path = tmp_path / "my job.yaml"
    path.write_text(JOB)
    return str(path)


def test_variables_stay_as_written(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "value-of-this-machine")
    monkeypatch.setenv("JOB_NAME", "shown")
    found = read_job_file(job)
    assert found.name == "my-job.yaml"
    assert found.variables == ("BUCKET", "JOB_NAME")
    assert "value-of-this-machine" not in found.text
    assert "s3://${BUCKET}/shards/*.tar" in found.text
    assert "NOT_A_VARIABLE" not in found.text
    assert found.spec.source.uri == "s3://value-of-this-machine/shards/*.tar"
    assert written_value(found, "source.uri") == "s3://${BUCKET}/shards/*.tar"
    assert written_value(found, "model.labels") == ""
    assert written_value(found, "source.nothing.there") == ""


def test_what_is_unset_here_is_checked_all_the_same(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("BUCKET", raising=False)
    monkeypatch.delenv("JOB_NAME", raising=False)
    assert read_job_file(job).spec.source.uri == "s3://placeholder/shards/*.tar"
    with pytest.raises(SpecError, match=r"my job.yaml:3: source.colour: unknown key"):
        read_job_file(_with(job, "{uri: s3:", "{colour: 1, uri: s3:"))


def _with(job: str, old: str, new: str) -> str:
    path = Path(job)
    path.write_text(path.read_text().replace(old, new, 1))
    return job


def test_a_variable_may_stand_for_a_digest(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DIGEST", raising=False)
    monkeypatch.setenv("JOB_NAME", "named")
    found = read_job_file(_with(job, "sha256: null", 'sha256: "${DIGEST}"'))
    assert found.variables == ("BUCKET", "DIGEST", "JOB_NAME")


def test_the_environment_can_be_hidden(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "value-of-this-machine")
    assert "value-of-this-machine" not in repr(read_job_file(job, hide_environment=True))


def test_text_reads_back_to_the_same_spec_with_settings(job: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BUCKET", "b")
    monkeypatch.setenv("JOB_NAME", "named")
    settings = ["model.score_threshold=0.00001", "compute.actors=3", 'source.uri="s3://${BUCKET}/other"', "name=x"]
    found = read_job_file(job, settings)
    assert found.spec.model.score_threshold == 0.00001
    assert found.spec.model.classes == ("no", "1e3", "012", "person")
    assert found.variables == ("BUCKET",)
    assert parse_job(found.text, "text") == found.spec == parse_job(Path(job).read_text(), "file", settings)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"name: \xff", r"no text in UTF-8 \(byte 6\)"),
        (b"name: a\nname: b\n", "stands twice"),
        (b"", "a job spec is a mapping"),
    ],
)
def test_what_is_no_job_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "job.yaml"
    path.write_bytes(content)
    with pytest.raises(SpecError, match=message):
        read_job_file(str(path))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"none\.yaml: there is no such job file"):
        read_job_file(str(tmp_path / "none.yaml"))


def test_a_literal_secret_is_refused(job: str) -> None:
    with pytest.raises(SpecError, match="access key") as error:
        read_job_file(job, ["source.uri=s3://AKIAABCDEFGHIJKLMNOP/x"], hide_environment=True)
    assert "there is no such" not in str(error.value)


@pytest.mark.parametrize(
    ("uri", "local"),
    [
        ("", False),
        ("images", True),
        ("/images", True),
        ("file:///images", True),
        ("${ANY}/images", False),
        ("/data/${ANY}", True),
        ("builtin:sample", False),
        ("s3://b/c", False),
    ],
)
def test_is_local(uri: str, local: bool) -> None:
    assert is_local(uri) is local
