"""The dashboard of a Ray cluster: its address, who may use it, and whether it answers."""

import ipaddress
import os
from typing import Any
from urllib.parse import urlsplit

from batchdet.errors import ClusterError, SpecError

CONNECT_TIMEOUT_S = 4.0


def dashboard_address(address: str) -> str:
    """Check the address of a dashboard and return it with its scheme and without a trailing slash.

    Raises:
        SpecError: It is no HTTP address, or carries a user name or password.
    """
    text = address.strip()
    parts = urlsplit(text if "://" in text else f"http://{text}")
    try:
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and text != "auto"
        port = parts.port
    except ValueError:
        good, port = False, None
    if parts.username or parts.password:
        raise SpecError(
            "--address: holds a user name or password; leave them out and set RAY_AUTH_TOKEN",
            code="cluster.address",
            key="--address",
        )
    if not good or parts.query or parts.fragment:
        raise SpecError(
            f"--address {address}: found no address of a Ray dashboard; it should look like http://HOST:8265 "
            "(ray:// and 'auto' belong into compute.address of a run)",
            code="cluster.address",
            key="--address",
        )
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"{parts.scheme}://{host}{'' if port is None else f':{port}'}{parts.path.rstrip('/')}"


def is_loopback(address: str) -> bool:
    """Tell whether a dashboard's address leads to this machine only."""
    host = urlsplit(address).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def auth_headers() -> dict[str, str]:
    """Return the HTTP headers with this user's token, as Ray's own clients make them; {} if there is no token.

    Ray looks into ``RAY_AUTH_TOKEN``, the file of ``RAY_AUTH_TOKEN_PATH`` and ``~/.ray/auth_token``. Its clients do so
    only with ``RAY_AUTH_MODE=token``. Here an unset mode is enough: since 2.60 ``ray start`` wants a token if there
    is one. Any other mode sends none.

    Raises:
        SpecError: ``RAY_AUTH_MODE`` or ``RAY_AUTH_TOKEN_PATH`` names a token that is not there.
    """
    mode = os.environ.get("RAY_AUTH_MODE", "").lower()
    if mode not in {"", "token"}:
        return {}
    from ray import _raylet
    from ray.exceptions import AuthenticationError

    loader: Any = vars(_raylet)["AuthenticationTokenLoader"].instance()  # what all of Ray's clients ask
    loader.reset_cache()
    try:
        if not loader.has_token(ignore_auth_mode=True):
            if mode:
                raise SpecError(
                    "RAY_AUTH_MODE is token, and no token was found; set RAY_AUTH_TOKEN, or RAY_AUTH_TOKEN_PATH, or "
                    "write the cluster's into ~/.ray/auth_token",
                    code="cluster.token",
                    key="RAY_AUTH_MODE",
                )
            return {}
        return dict(loader.get_token_for_http_header())
    except AuthenticationError as error:
        raise SpecError(
            f"RAY_AUTH_TOKEN_PATH: cannot read a token from {os.environ.get('RAY_AUTH_TOKEN_PATH', '')}; name a file "
            "that holds the cluster's",
            code="cluster.token",
            key="RAY_AUTH_TOKEN_PATH",
        ) from error


def greet(address: str) -> dict[str, str]:
    """Check that a dashboard answers, and return the headers for its requests.

    The token is sent only if the dashboard asks for one.

    Args:
        address: As :func:`dashboard_address` returns it.

    Returns:
        ``{}`` if the dashboard takes requests of anybody.

    Raises:
        ClusterError: Nothing answers within ten seconds, it is no Ray dashboard, or it wants another token.
        SpecError: The token that the environment names is not there.
    """
    headers: dict[str, str] = {}
    status, text = _ask(address, headers)
    if status in {401, 403} and (headers := auth_headers()):
        status, text = _ask(address, headers)
    if status in {401, 403}:
        raise ClusterError(
            f"{address}: the cluster wants a token and {'refused the one given' if headers else 'got none'}; "
            "set RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH, or write the cluster's into ~/.ray/auth_token",
            code="cluster.token",
            key=address,
        )
    if status != 200 or "ray_version" not in text:
        raise ClusterError(
            f"{address}: something answers there (HTTP {status}), but no Ray dashboard; give the "
            "address that 'ray start' printed, usually http://HOST:8265",
            code="cluster.no_dashboard",
            key=address,
        )
    return headers


def _ask(address: str, headers: dict[str, str]) -> tuple[int, str]:
    import requests

    try:
        answer = requests.get(f"{address}/api/version", headers=headers, timeout=(CONNECT_TIMEOUT_S, CONNECT_TIMEOUT_S))
    except requests.exceptions.RequestException as error:
        raise ClusterError(
            f"{address}: no Ray dashboard answers there ({cause(error)}); is the head running and its port "
            "reachable from here?",
            code="cluster.unreachable",
            key=address,
        ) from error
    return answer.status_code, answer.text


def cause(error: Exception) -> str:
    """Return in a few words why a connection failed."""
    text = str(error)
    for words, why in (
        ("Connection refused", "connection refused"),
        ("NameResolution", "no such host"),
        ("Name or service", "no such host"),
        ("Network is unreachable", "network unreachable"),
        ("timed out", "timed out"),
    ):
        if words in text:
            return why
    return type(error).__name__
