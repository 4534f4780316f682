import http.server
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from batchdet.errors import ImageError
from batchdet.source import http as source_http
from batchdet.source.fetch import read_allowed
from batchdet.source.http import fetch
from batchdet.source.policy import Allowed
from batchdet.storage import NotFound, StorageError, TransientError
from tests.clock import stop_the_clock
from tests.unit.source.corpus import read_all

BODY = b"an image" * 100


class _Handler(http.server.BaseHTTPRequestHandler):
    asked: list[str] = []  # noqa: RUF012
    failures = 0

    def do_GET(self) -> None:
        type(self).asked.append(self.path)
        if self.path == "/flaky.jpg" and type(self).failures > 0:
            type(self).failures -= 1
            self.send_error(503)
        elif self.path == "/redirect.jpg":
            self.send_response(302)
            self.send_header("Location", "/image.jpg")
            self.end_headers()
        elif self.path in {"/image.jpg", "/flaky.jpg", "/a%20b.jpg?x=1"}:
            self._send(BODY, len(BODY))
        elif self.path == "/short.jpg":
            self._send(BODY, len(BODY) + 10)
        else:
            self.send_error(404 if self.path == "/missing.jpg" else 403)

    def _send(self, body: bytes, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[str]:
    _Handler.asked = []
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Handler) as httpd:
        thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{httpd.server_address[1]}"
        finally:
            httpd.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def _fast_retries(monkeypatch: pytest.MonkeyPatch) -> None:
    stop_the_clock(monkeypatch)


def test_body_and_quoting(server: str) -> None:
    assert fetch(Allowed(f"{server}/image.jpg", False), 1000) == BODY
    assert fetch(Allowed(f"{server}/a b.jpg?x=1", False), 1000) == BODY


@pytest.mark.acceptance("S11")
def test_private_hosts_are_refused_before_a_connection(server: str) -> None:
    with pytest.raises(ImageError, match=r"127\.0\.0\.1, not a public address") as caught:
        fetch(Allowed(f"{server}/image.jpg", True), 1000)
    assert caught.value.code == "refused_uri"
    assert _Handler.asked == []


@pytest.mark.parametrize(
    ("address", "public"),
    [
        ("93.184.216.34", True), ("127.0.0.1", False), ("169.254.169.254", False), ("10.1.2.3", False), ("::1", False),
        ("::ffff:127.0.0.1", False), ("fe80::1%eth0", False), ("0.0.0.0", False), ("100.64.0.1", False),
        ("64:ff9b::7f00:1", False), ("2002:7f00:1::", False), ("::7f00:1", False), ("fec0::1", False),
        ("224.0.0.1", False),
        ("2606:2800:220:1::1", True),
    ],
)  # fmt: skip
def test_public_addresses(address: str, public: bool) -> None:
    assert source_http._is_public(address) is public


@pytest.mark.parametrize("host", ["2130706433", "0x7f.1", "127.1", "localhost"])
@pytest.mark.acceptance("S11")
def test_other_spellings_of_loopback(server: str, host: str) -> None:
    port = server.rsplit(":", 1)[1]
    with pytest.raises(ImageError, match="not a public address"):
        fetch(Allowed(f"http://{host}:{port}/image.jpg", True), 1000)
    assert _Handler.asked == []


@pytest.mark.acceptance("S11")
def test_redirects_are_not_followed(server: str) -> None:
    with pytest.raises(ImageError, match=r"redirects \(HTTP 302\)") as caught:
        fetch(Allowed(f"{server}/redirect.jpg", False), 1000)
    assert caught.value.code == "refused_uri"
    assert _Handler.asked == ["/redirect.jpg"]


def test_failures_have_their_kind(server: str) -> None:
    with pytest.raises(NotFound):
        fetch(Allowed(f"{server}/missing.jpg", False), 1000)
    with pytest.raises(StorageError, match="HTTP 403"):
        fetch(Allowed(f"{server}/x.jpg", False), 1000)
    with pytest.raises(TransientError):
        fetch(Allowed(f"{server}/short.jpg", False), 5000)
    with pytest.raises(TransientError):
        fetch(Allowed("http://127.0.0.1:1/x.jpg", False), 1000)
    with pytest.raises(ImageError, match="more than 100 bytes") as caught:
        fetch(Allowed(f"{server}/image.jpg", False), 100)
    assert caught.value.code == "too_large"


def test_passing_failures_are_tried_again(server: str) -> None:
    _Handler.failures = 3
    assert read_allowed(Allowed(f"{server}/flaky.jpg", False), 1000) == BODY
    assert _Handler.asked == ["/flaky.jpg"] * 4


def test_list_of_urls(server: str, tmp_path: Path) -> None:
    (tmp_path / "l.txt").write_text(f"{server}/image.jpg\n{server}/missing.jpg\n{server}/redirect.jpg\n")
    assert read_all(tmp_path / "l.txt").codes == ["refused_uri"] * 3
    assert read_all(tmp_path / "l.txt", allow=("http://",)).codes == ["refused_uri"] * 3
    assert _Handler.asked == []
    got = read_all(tmp_path / "l.txt", allow=(server,))
    assert got.codes == [None, "unreadable", "refused_uri"]
    assert got.data[0] == BODY
