"""Targets of sinks: which kind a URL names, and that it contains no secret. Pure; connects to nothing.

A target is stored and shown, so it may not contain a secret. Options name the place of each secret instead.
"""

from __future__ import annotations

import re
from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from repo.errors import InvalidSettings
from repo.inputs.arguments import check_text

__all__ = ["KINDS", "SinkTarget", "parse_target"]

KINDS: Final = {
    "http": "http",
    "https": "http",
    "http+holdfast": "holdfast",
    "https+holdfast": "holdfast",
    "postgresql": "postgresql",
    "mqtt": "mqtt",
    "mqtts": "mqtt",
    "kafka": "kafka",
    "kafka+ssl": "kafka",
    "file": "folder",
}
"""The kind of sink by the scheme of its URL."""

_MOST_CHARS = 2_048
_SECRET = re.compile(
    r"(?:^|[-_.])(?:token|password|passwd|passphrase|pwd|secret|sig|signature|api-?key|key|auth|credentials?)(?:$|[-_.])"
    r"|^(?:apikey|accesstoken|sslpassword|access_?key|p)$",
    re.IGNORECASE,
)
_SERVER = re.compile(r"(?:\[[^\[\]]+\]|[^\[\]:]+)(?::([0-9]{1,5}))?")
_USES_SECRETS = (
    "a target is stored and shown. Leave it out, and name its place as an option: `--secret password=env:NAME` or "
    "`--secret token=file:PATH` (in Python, `password='env:NAME'`)"
)


class SinkTarget(NamedTuple):
    """A checked target: the kind of its sink, and its URL."""

    kind: str
    url: str


def parse_target(target: object) -> SinkTarget:
    """Check the URL of a destination, and return it with its kind.

    Raises `InvalidSettings` for an unknown scheme, a URL without a host (or, for `file`, without an absolute path), and
    for a URL with a password, a token or another secret, which the message does not show.
    """
    url = check_text(target, "target", error=InvalidSettings)
    if not url or len(url) > _MOST_CHARS or not url.isprintable() or " " in url:
        raise InvalidSettings(
            f"the target is not a URL: write one of at most {_MOST_CHARS:,} characters, without spaces or control "
            "characters"
        )
    scheme, separator, rest = url.partition("://")
    kind = KINDS.get(scheme.lower()) if separator else None
    if kind is None:
        raise InvalidSettings(
            f"the target must begin with one of {', '.join(f'{known}://' for known in KINDS)}"
            " (a folder is file:///PATH)"
        )
    try:
        parts = urlsplit(url)
        host, port, query = parts.hostname, parts.port, parse_qsl(parts.query, keep_blank_values=True)
    except ValueError as error:
        if kind != "kafka":  # whose hosts are a list
            raise InvalidSettings(f"the target is not a URL with a host and a port: {error}") from error
        host, port, query = rest.partition("/")[0], None, []
    user, at, _ = rest.partition("/")[0].rpartition("@")
    if at and (":" in user or kind != "postgresql"):
        raise InvalidSettings(f"the target contains a user or a password; {_USES_SECRETS}")
    secret = next((name for name, _ in query if _SECRET.search(name)), None)
    if secret is not None:
        raise InvalidSettings(
            f"the target contains a value for {secret[:40]!r}, which may be secret; {_USES_SECRETS}"
        )
    if parts.fragment if kind != "kafka" else "#" in rest:
        raise InvalidSettings("the target has a part after #, which is never sent; leave it out")
    if kind == "folder":
        if host not in (None, "", "localhost") or not parts.path.startswith("/"):
            raise InvalidSettings("the target names no absolute path; write it as file:///PATH")
    elif kind == "kafka":
        _check_servers(rest.partition("/")[0])
    elif not host or port == 0:
        raise InvalidSettings("the target names no host; write it as in https://HOST:PORT/PATH")
    return SinkTarget(kind, f"{scheme.lower()}{separator}{rest}")


def _check_servers(servers: str) -> None:
    for server in servers.split(","):
        match = _SERVER.fullmatch(server)
        if match is None or not 0 < int(match[1] or 9092) < 65_536:
            raise InvalidSettings(
                f"the target has {server[:80]!r} where a host and a port are expected; write it as in "
                "kafka://HOST:PORT,HOST:PORT/TOPIC"
            )
