"""The HTTP sink: one POST per batch. The formats know what is sent and what an answer says.

Every request has the key of its batch (`repo.delivery.keys`) in `Idempotency-Key`, its lane in `Holdfast-Lane`, and the
number of the attempt in `Holdfast-Attempt`. The options are those of the kind `http` in `repo.store.sink_options`.

| answer | |
|---|---|
| what the format calls a success | delivered |
| 400, 413, 422 | the destination rejects an item: the batch is split |
| the same to the first single item and to a write without points, from a database | halted until the cause is fixed |
| 408, 425, 429, 5xx, 302, 303, 307 | tried again; `Retry-After` in seconds is respected |
| any other, and a certificate that is not trusted | halted until the cause is fixed |

Redirects are never followed. The destination keeps no position: it gets each batch at least once, and cannot notice
that a store is a copy of another one.
"""

from __future__ import annotations

import base64
import re
from io import BytesIO
from typing import Any
from urllib.parse import quote, urlencode

from repo.delivery.keys import BatchKey
from repo.delivery.protocol import Batch, Item, Outcome
from repo.delivery.secrets import Secret
from repo.delivery.sinks.connection import Answer, Connection, checked_url, rejected
from repo.delivery.sinks.http_formats import format_of
from repo.errors import InvalidSettings, SinkHalted, SinkRefused, SinkUnreachable
from repo.formats.compression import packed
from repo.inputs.arguments import check_text, shown
from repo.store.sink_options import effective_options

__all__ = ["HttpSink"]

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_HEADER = "header."


class HttpSink:
    """Sends batches to an HTTP or HTTPS URL over one persistent connection. For one thread; `open` comes first.

    The options are texts, numbers and booleans, as listed for the kind `http`. A secret may also be the value itself
    instead of `env:NAME` or `file:PATH`; it is never logged.
    """

    exact = False

    def __init__(self, url: str, *, name: str, **options: Any) -> None:
        self._name = check_text(name, "name", error=InvalidSettings)
        self._options = effective_options("http", options)
        self._format = format_of(self._options)
        parts = checked_url(url)
        self._connection = Connection(parts)
        path = (
            quote(parts.path, safe="/%:@!$&'()*+,;=~") if parts.path not in ("", "/") else self._format.path
        )
        query = "&".join(text for text in (parts.query, urlencode(self._format.parameters())) if text)
        self._target = path + (f"?{query}" if query else "")
        self._headers: dict[str, str] = {}
        self._accepts = False  # whether a write was accepted since `open`, if only one without points
        for option in options:
            header = option.removeprefix(_HEADER)
            if option.startswith(_HEADER) and not _HEADER_NAME.fullmatch(header):
                raise InvalidSettings(f"{shown(header)} is not the name of a header")

    @property
    def name(self) -> str:
        """The name of the sink in the store."""
        return self._name

    @property
    def takes_records(self) -> bool:
        """Whether the format can express records."""
        return self._format.takes_records

    def open(self, store_id: str, epoch: int) -> None:  # noqa: ARG002  it keeps no position
        """Read secrets and certificates, and connect. The destination holds no token."""
        self.close()
        self._accepts = False
        self._headers = self._new_headers()
        self._connection.open(self._options)

    def send(self, batch: Batch) -> Outcome:
        """Send a batch and return what the destination says about it."""
        if not self._connection.is_open:
            self.open(batch.store_id, batch.epoch)
        encoded = self._format.encode(batch)
        if not encoded.texts:
            return Outcome(encoded.refused)
        content = self._format.body(encoded)
        key = str(BatchKey.of(batch, content))
        body = self._packed(content)
        headers = {
            **self._headers,
            "Idempotency-Key": key,
            "Holdfast-Lane": str(batch.lane),
            "Holdfast-Attempt": str(batch.attempt),
        }
        answer = self._connection.exchange("POST", self._target, body, headers)
        outcome = self._format.outcome(answer, key, encoded, self._connection.address)
        if outcome is None:
            error = self._rejection(answer, len(batch))
            if len(batch) > 1 or not self._accepts or not isinstance(error, SinkRefused):
                raise error
            outcome = Outcome((Item(0, str(error)),))  # it is this item, and not all that is sent there
        self._accepts = True
        return Outcome(
            tuple(sorted({*encoded.refused, *outcome.refused})), outcome.repeat, sent_bytes=len(body)
        )

    def check(self) -> str:
        """Check with an empty write whether a database would take a batch; for other receivers, say what is unknown.

        A database checks the login, its name and the rights before it looks at the lines. The health checks that it
        also has need no login. A receiver of JSON may take anything for a batch, so it is sent nothing.
        """
        if not self._format.takes_empty:
            return "whether it accepts the login and the path is known only after a delivery"
        return self._format.checked(self._write_nothing(), self._connection.address)

    def close(self) -> None:
        """Close the connection. Safe to call again."""
        self._connection.close()

    def _rejection(self, answer: Answer, items: int) -> SinkHalted | SinkRefused | SinkUnreachable:
        """Return what an answer other than success means.

        A database may answer a wrong path or a wrong name as it answers a bad point. So when the first item is refused,
        the sink sends a write without points. If the answer is the same, the point is not the cause.
        """
        error = rejected(answer, self._connection.address)
        if items > 1 or self._accepts or not self._format.takes_empty or not isinstance(error, SinkRefused):
            return error
        empty = self._write_nothing()
        self._accepts = empty.is_success
        if (empty.status, empty.body) != (answer.status, answer.body):
            return error
        return SinkHalted(
            f"{error}; a write without points gets the same answer: check the URL and the options of the sink"
        )

    def _write_nothing(self) -> Answer:
        return self._connection.exchange("POST", self._target, self._packed(b""), self._headers)

    def _new_headers(self) -> dict[str, str]:
        headers = {"Content-Type": self._format.content_type, "Accept": "application/json"}
        if self._options["compression"] != "none":
            headers["Content-Encoding"] = self._options["compression"]
        token, user, password = (self._options[name] for name in ("token", "user", "password"))
        if token is not None:
            headers["Authorization"] = f"{self._format.token_scheme} {Secret('token', token).reveal()}"
        elif user is not None:
            known = Secret("password", password).reveal() if password is not None else ""
            both = f"{Secret('user', user).reveal()}:{known}".encode()
            headers["Authorization"] = f"Basic {base64.b64encode(both).decode()}"
        for option, value in self._options.items():
            if option.startswith(_HEADER):
                headers[option.removeprefix(_HEADER)] = Secret(option, value).reveal()
        for header, value in headers.items():
            if not value.isascii():
                raise SinkHalted(
                    f"the header {header} must be ASCII; check the token or option that it is made of"
                )
        return headers

    def _packed(self, content: bytes) -> bytes:
        if self._options["compression"] == "none":
            return content
        target = BytesIO()
        with packed(target, self._options["compression"]) as stream:
            stream.write(content)
        return target.getvalue()
