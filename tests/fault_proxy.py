"""A proxy on loopback that stands before a real S3 server and misbehaves by rule.

::

    with s3_server() as s3, fault_proxy(s3, seed=7) as proxy:
        slow = proxy.add("slow_down", fraction=2 / 3)
        ...                                    # clients whose environment holds proxy.env
        proxy.wait(lambda: slow.hits >= 3)
        proxy.clear()

Requests are forwarded as they came (the Host header too, which the client has signed). The first rule that matches a
request decides. Whether a rule with a ``fraction`` takes a request depends on the seed, the rule's place, and how often
that method and path were asked for before: not on the order in which threads arrive.
"""

import contextlib
import http.client
import http.server
import random
import re
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, Final
from urllib.parse import unquote, urlsplit

import botocore.session

from tests.s3_server import S3Server

FAULTS: Final = (
    "slow_down",  # 503 SlowDown, as S3 says it; the server never sees the request
    "internal_error",  # 500 InternalError, likewise
    "cut",  # the reply's body ends in the middle, the connection with it
    "short",  # the reply's body is half as long, and its Content-Length agrees
    "lose_reply",  # the server gets the request and carries it out; the connection ends without a reply
    "stall",  # nothing happens for a while (or until the rule is taken away), then the request goes on
    "refuse",  # the connection ends before anything is forwarded
    "ignore_condition",  # an object that is in the way of If-None-Match goes first, as if the store ignored that
)
_VARYING: Final = re.compile(r"\d{8}-\d{6}-[0-9a-f]{4}|uploadId=[^&]+")
"""Names of runs and uploads: what differs each time is no part of chance."""
_UPSTREAM_TIMEOUT_S: Final = 300.0
_MESSAGES: Final = {
    "slow_down": (503, "SlowDown", "Please reduce your request rate."),
    "internal_error": (500, "InternalError", "We encountered an internal error. Please try again."),
}


@dataclass
class Rule:
    """One way to misbehave, and towards whom.

    Args:
        fault: One of ``FAULTS``.
        fraction: Of the requests that match, 0 to 1.
        method: Pattern that the whole method matches.
        path: Pattern that is looked for in the unquoted path with its query, such as ``/bucket/key?uploads=``.
        count: At most so many times; None sets no limit.
        after: So many matching requests are let through first.
        stall_s: How long ``stall`` lasts; None: until the rule is taken away.
        hits: How often it has misbehaved so far.
    """

    fault: str
    fraction: float = 1.0
    method: str = ".*"
    path: str = ""
    count: int | None = None
    after: int = 0
    stall_s: float | None = None
    hits: int = 0
    seen: int = 0
    ended: threading.Event = field(default_factory=threading.Event, repr=False)

    def __post_init__(self) -> None:
        if self.fault not in FAULTS:
            raise ValueError(f"{self.fault!r} is no fault; the proxy knows {', '.join(FAULTS)}")


@dataclass(frozen=True)
class Request:
    """One request that arrived.

    Args:
        at_s: When, on the clock of ``time.monotonic``.
        method: ``GET``, ``PUT``, ...
        path: Unquoted, with its query.
        fault: What was done to it, or "".
        status: What the server answered; 0 when it was not asked.
    """

    at_s: float
    method: str
    path: str
    fault: str
    status: int


class FaultProxy:
    """The running proxy; see the module's docstring. Every method may be called from any thread.

    Args:
        server: The S3 server behind it.
        seed: Of what is left to chance.
    """

    def __init__(self, server: S3Server, seed: int = 0) -> None:
        self._upstream = urlsplit(server.endpoint).netloc
        self._seed = seed
        self._client = botocore.session.get_session().create_client(
            "s3",
            endpoint_url=server.endpoint,
            aws_access_key_id=server.env["AWS_ACCESS_KEY_ID"],
            aws_secret_access_key=server.env["AWS_SECRET_ACCESS_KEY"],
            region_name="us-east-1",
        )
        self._changed = threading.Condition()
        self._rules: list[Rule] = []
        self._requests: list[Request] = []
        self._asked: Counter[tuple[str, str]] = Counter()
        self._server = _Listener(("127.0.0.1", 0), self._handler())
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        self._thread.start()
        self.endpoint = f"http://127.0.0.1:{self._server.server_address[1]}"
        self.env = {**server.env, "AWS_ENDPOINT_URL": self.endpoint}
        """What a client needs in its environment to come this way."""

    def add(self, fault: str, **limits: Any) -> Rule:
        """Misbehave from now on; the arguments are those of :class:`Rule`."""
        rule = Rule(fault, **limits)
        with self._changed:
            self._rules.append(rule)
        return rule

    def clear(self) -> None:
        """Take every rule away: whoever is stalled goes on."""
        with self._changed:
            for rule in self._rules:
                rule.ended.set()
            self._rules.clear()

    @contextlib.contextmanager
    def fault(self, fault: str, **limits: Any) -> Iterator[Rule]:
        """Misbehave while the block lasts."""
        rule = self.add(fault, **limits)
        try:
            yield rule
        finally:
            with self._changed:
                rule.ended.set()
                self._rules = [other for other in self._rules if other is not rule]

    @property
    def requests(self) -> list[Request]:
        """Every request so far, in the order in which they were answered."""
        with self._changed:
            return list(self._requests)

    def counts(self) -> Counter[tuple[str, str]]:
        """How often each (method, path) was asked for."""
        return Counter((r.method, r.path) for r in self.requests)

    def count(self, method: str = ".*", path: str = "", fault: str = ".*") -> int:
        """Count requests whose method and fault match whole and in whose path the pattern is found."""
        return sum(
            1
            for r in self.requests
            if re.fullmatch(method, r.method) and re.search(path, r.path) and re.fullmatch(fault, r.fault)
        )

    def wait(self, happened: Callable[[], object], timeout_s: float = 120.0) -> None:
        """Block until ``happened()``, which is asked again after each request.

        Raises:
            TimeoutError: It has not happened in time.
        """
        deadline = time.monotonic() + timeout_s
        while not happened():
            left = deadline - time.monotonic()
            if left <= 0:
                raise TimeoutError(f"it has not happened within {timeout_s:g} s")
            with self._changed:
                self._changed.wait(min(left, 0.2))

    def close(self) -> None:
        """Stop listening and let stalled requests go."""
        self.clear()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _delete(self, path: str) -> None:
        bucket, _, key = path.partition("?")[0].lstrip("/").partition("/")
        self._client.delete_object(Bucket=bucket, Key=key)

    def _choose(self, method: str, path: str) -> Rule | None:
        with self._changed:
            name = _VARYING.sub("*", path)
            nth = self._asked[method, name]
            self._asked[method, name] += 1
            for place, rule in enumerate(self._rules):
                if not (re.fullmatch(rule.method, method) and re.search(rule.path, path)):
                    continue
                rule.seen += 1
                if rule.seen <= rule.after or (rule.count is not None and rule.hits >= rule.count):
                    continue
                if random.Random(f"{self._seed} {place} {method} {name} {nth}").random() < rule.fraction:
                    rule.hits += 1
                    self._changed.notify_all()
                    return rule
            return None

    def _note(self, request: Request) -> None:
        with self._changed:
            self._requests.append(request)
            self._changed.notify_all()

    def _handler(self) -> type[http.server.BaseHTTPRequestHandler]:
        proxy = self

        class Handler(_Handler):
            owner = proxy

        return Handler


class _Listener(http.server.ThreadingHTTPServer):
    """A thread per connection; none of them holds up the end."""

    daemon_threads = True
    request_queue_size = 128


class _Handler(http.server.BaseHTTPRequestHandler):
    """One connection of a client, with its own connection to the server."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    owner: FaultProxy
    _server_connection: http.client.HTTPConnection | None = None

    def handle_one_request(self) -> None:
        try:
            super().handle_one_request()
        except (OSError, http.client.HTTPException):  # the client or the server went away
            self.close_connection = True

    def finish(self) -> None:
        if self._server_connection is not None:
            self._server_connection.close()
        with contextlib.suppress(OSError):
            super().finish()

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing."""

    def _serve(self) -> None:
        path = unquote(self.path)
        body = self._body()
        rule = self.owner._choose(self.command, path)
        fault, status = rule.fault if rule else "", 0
        try:
            if rule and fault == "stall":
                rule.ended.wait(rule.stall_s)
            if fault in _MESSAGES:
                self._say(*_MESSAGES[fault])
            elif fault == "refuse":
                self.close_connection = True
            else:
                if fault == "ignore_condition" and "If-None-Match" in self.headers:
                    self.owner._delete(path)
                response, data = self._forward(body)
                status = response.status
                if fault == "lose_reply":
                    self.close_connection = True
                else:
                    self._answer(response, data, fault)
        finally:
            self.owner._note(Request(time.monotonic(), self.command, path, fault, status))
        if self.close_connection:
            self._hang_up()

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve

    def _body(self) -> bytes:
        if "chunked" not in self.headers.get("Transfer-Encoding", ""):
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        while self.rfile.readline().strip():
            pass
        return b"".join(parts)

    def _forward(self, body: bytes) -> tuple[http.client.HTTPResponse, bytes]:
        """Ask the server; once more on a new connection where it had closed the idle one."""
        for again in (True, False):
            kept = self._server_connection
            connection = kept or http.client.HTTPConnection(self.owner._upstream, timeout=_UPSTREAM_TIMEOUT_S)
            self._server_connection = connection
            try:
                connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
                for name, value in self.headers.items():
                    if name.lower() not in {"expect", "connection", "transfer-encoding", "content-length"}:
                        connection.putheader(name, value)
                if body or "Content-Length" in self.headers or "Transfer-Encoding" in self.headers:
                    connection.putheader("Content-Length", str(len(body)))
                connection.endheaders(body or None)
                response = connection.getresponse()
                return response, response.read()
            except (http.client.HTTPException, OSError):
                connection.close()
                self._server_connection = None
                if kept is None or not again:
                    raise
        raise AssertionError("unreachable")

    def _answer(self, response: http.client.HTTPResponse, data: bytes, fault: str) -> None:
        length = int(response.headers.get("Content-Length") or 0) if self.command == "HEAD" else len(data)
        if fault == "short":
            data = data[: len(data) // 2]
            length = len(data)
        self.send_response_only(response.status, response.reason)
        for name, value in response.headers.items():
            if name.lower() not in {"content-length", "transfer-encoding", "connection"}:
                self.send_header(name, value)
        self.send_header("Content-Length", str(length))
        self.end_headers()
        if fault == "cut":
            data = data[: len(data) // 2]
            self.close_connection = True
        self.wfile.write(data)
        self.wfile.flush()

    def _say(self, status: int, code: str, message: str) -> None:
        text = (
            '<?xml version="1.0" encoding="UTF-8"?>\n'
            f"<Error><Code>{code}</Code><Message>{message}</Message><RequestId>fault</RequestId></Error>"
        ).encode()
        self.send_response_only(status)
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(text)

    def _hang_up(self) -> None:
        with contextlib.suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)


@contextlib.contextmanager
def fault_proxy(server: S3Server, seed: int = 0) -> Iterator[FaultProxy]:
    """Run a proxy before ``server`` for as long as the block lasts.

    Children come this way with ``proxy.env`` in their environment; the environment of this process is left alone.
    """
    proxy = FaultProxy(server, seed)
    try:
        yield proxy
    finally:
        proxy.close()
