"""Secrets in texts: found, so that they are refused, and masked, so that they are written nowhere.

Every search takes time in proportion to the text, whatever is in it.
"""

import re
from collections.abc import Mapping
from typing import Final

_PATTERNS: Final = {
    "an AWS access key": re.compile(r"\b(AKIA|ASIA)[0-9A-Z]{16}\b"),
    "a token": re.compile(
        r"\b(gh[pousr]_[A-Za-z0-9]{30,}|hf_[A-Za-z0-9]{30,}|"
        r"sk-(proj|ant|svcacct|admin)-[\w-]{20,}|sk-[A-Za-z0-9]{40,}|AIza[\w-]{35})"
    ),
    "a private key": re.compile(r"-----BEGIN [A-Z ]{0,30}PRIVATE KEY"),
    "an account key": re.compile(r"(?i)\b(AccountKey|SharedAccessSignature|client_secret|password)=[^\s;&]*"),
    "a user name and password": re.compile(r"(?i)(?<![a-z0-9+.-])[a-z][a-z0-9+.-]*://[^/\s@:]+:[^/\s@]*@"),
}
_PARAMETER: Final = re.compile(r"([?&;#])([^?&;#=\s]{1,100})=([^&;#\s]*)")
_SECRET_PARAMETER: Final = re.compile(
    r"(?i)signature|token|secret|passw|credential|api[-_]?key|access[-_]?key|(?<![a-z])sig(?![a-z])"
)
_SECRET_NAME: Final = re.compile(
    r"(?i)(^|_)(secret|token|password|passwd|apikey)(_|$)|(api|access|account|private|secret)_key"
)
_NAMES_A_FILE: Final = re.compile(r"(?i)_(file|path|dir)$")
_MIN_SECRET: Final = 8
"""Shorter values of the environment are not looked for: they would be found in innocent texts."""


def find_secret(text: str, environment: Mapping[str, str] | None = None) -> str:
    """Say what secret a text holds: ``"a token"``; "" when none is seen.

    Args:
        text: Any text.
        environment: Variables; the values of those that are secrets by their names are looked for too.
    """
    for what, pattern in _PATTERNS.items():
        if pattern.search(text):
            return what
    if any(match[3] and _SECRET_PARAMETER.search(match[2]) for match in _PARAMETER.finditer(text)):
        return "a signed query"
    for name, value in (environment or {}).items():
        if len(value) >= _MIN_SECRET and is_secret_name(name) and value in text:
            return f"the value of {name}"
    return ""


def is_secret_name(name: str) -> bool:
    """Tell whether a variable of this name holds a secret: ``AWS_SECRET_ACCESS_KEY``, ``HF_TOKEN``."""
    return _SECRET_NAME.search(name) is not None and _NAMES_A_FILE.search(name) is None


def masked(text: str) -> str:
    """Return the text with ``***`` in the place of secrets; one without secrets is returned as it is."""
    for pattern in _PATTERNS.values():
        text = pattern.sub(lambda match: _mask(match[0]), text)
    return _PARAMETER.sub(
        lambda match: f"{match[1]}{match[2]}=***" if _SECRET_PARAMETER.search(match[2]) else match[0], text
    )


def _mask(secret: str) -> str:
    scheme, separator, _ = secret.partition("://")
    return f"{scheme}://***@" if separator else "***"
