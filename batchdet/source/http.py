"""Fetch one image over HTTP: no redirects, a cap on bytes, no private address unless the spec names the host."""

import http.client
import ipaddress
import socket
import ssl
from typing import Final
from urllib.parse import quote, urlsplit

from batchdet.errors import ImageError
from batchdet.source.policy import Allowed
from batchdet.storage import NotFound, StorageError, TransientError

_TIMEOUT_S: Final = 30.0
_PASSING: Final = frozenset({408, 425, 429, 500, 502, 503, 504})
_NAT64: Final = ipaddress.ip_network("64:ff9b::/96")
_SAFE: Final = "/?&=+,;:@!$'()*~%#[]"


def fetch(allowed: Allowed, max_bytes: int) -> bytes:
    """Return the body.

    Args:
        allowed: The URL, and whether its host must be public.
        max_bytes: Reading stops behind this many bytes.

    Raises:
        ImageError: The host is private (``refused_uri``) or the body too large (``too_large``).
        StorageError: It cannot be read.
    """
    url = urlsplit(allowed.uri)
    host, port = url.hostname or "", url.port or (443 if url.scheme == "https" else 80)
    target = quote(url.path or "/", safe=_SAFE) + (f"?{quote(url.query, safe=_SAFE)}" if url.query else "")
    try:
        address = _resolve(host, port, allowed)
        connection = _Connection(host, port, address, url.scheme == "https")
        try:
            connection.request("GET", target, headers={"Accept": "*/*", "User-Agent": "batchdet"})
            with connection.getresponse() as response:
                return _body(response, allowed.uri, max_bytes)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException, ValueError) as error:
        raise TransientError(f"{allowed.uri}: cannot read: {type(error).__name__}: {error}") from error


def _resolve(host: str, port: int, allowed: Allowed) -> str:
    addresses = [info[4][0] for info in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    for address in addresses:
        if allowed.public_only and not _is_public(str(address)):
            raise ImageError(
                "refused_uri", f"{allowed.uri!r}: {host} is {address}, not a public address; name it in source.allow"
            )
    return str(addresses[0])


def _is_public(address: str) -> bool:
    ip = ipaddress.ip_address(address.split("%")[0])
    if isinstance(ip, ipaddress.IPv4Address):
        return ip.is_global and not ip.is_multicast
    if ip.ipv4_mapped:
        return _is_public(str(ip.ipv4_mapped))
    carries_ipv4 = ip in _NAT64 or int(ip) >> 32 == 0 or ip.sixtofour  # and a gateway might unwrap it
    return ip.is_global and not (ip.is_multicast or ip.is_site_local or carries_ipv4)


class _Connection(http.client.HTTPConnection):
    """Connects to the address that was checked, whatever the name resolves to the next time."""

    def __init__(self, host: str, port: int, address: str, secure: bool) -> None:
        super().__init__(host, port, timeout=_TIMEOUT_S)
        self._address = address
        self._secure = secure

    def connect(self) -> None:
        """Connect to the checked address."""
        self.sock = socket.create_connection((self._address, self.port), timeout=_TIMEOUT_S)
        if self._secure:
            self.sock = ssl.create_default_context().wrap_socket(self.sock, server_hostname=self.host)


def _body(response: http.client.HTTPResponse, uri: str, max_bytes: int) -> bytes:
    status = response.status
    if status in _PASSING:
        raise TransientError(f"{uri}: cannot read: HTTP {status} {response.reason}")
    if status in {404, 410}:
        raise NotFound(f"{uri}: cannot read: HTTP {status}")
    if 300 <= status < 400:
        raise ImageError("refused_uri", f"{uri!r}: redirects (HTTP {status}) are not followed")
    if status != 200:
        raise StorageError(f"{uri}: cannot read: HTTP {status} {response.reason}")
    data = response.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ImageError("too_large", f"{uri}: more than {max_bytes} bytes (source.max_image_bytes)")
    if response.length:
        raise TransientError(f"{uri}: cannot read: the body ends {response.length} bytes too early")
    return data
