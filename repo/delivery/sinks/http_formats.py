"""What an HTTP request contains in each format, and what the answer says. Owns no connection.

JSON and NDJSON carry points and records. With receipts, the answer must be a JSON object with the key of the batch:

    {"key": "holdfast-2....", "repeat": false, "refused": [[ROW, "reason"], ...]}

`refused` is optional; a third element `true` says that the item is only too late. Without receipts, any answer 2xx
counts unless it is an HTML page, as the login page of a captive portal is.

InfluxDB's line protocol carries points. Version 1 is `/write`, 2 is `/api/v2/write`, 3 is `/api/v3/write_lp`; other
databases accept version 1, too. The answer must be 204. If the database stored a part of the batch, its answer may name
the lines that it rejected.
"""

from __future__ import annotations

import json
import re
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

from repo.delivery.encodings import ndjson
from repo.delivery.encodings.encoded import Encoded
from repo.delivery.encodings.line_protocol import LineProtocol
from repo.delivery.protocol import Batch, Item, Outcome
from repo.delivery.sinks.connection import Answer, rejected
from repo.errors import InvalidSettings, SinkHalted, SinkRefused, SinkUnreachable

__all__ = ["Format", "format_of"]

_REASON_CHARS = 200


class Format(ABC):
    """One format of the body."""

    takes_records = True
    content_type: str
    path = "/"
    """The path of the endpoint, if the URL has none."""
    token_scheme = "Bearer"  # noqa: S105  the scheme, no token

    takes_empty = False
    """Whether a body without items changes nothing, and is answered as a batch is."""

    def parameters(self) -> dict[str, str]:
        """Return what the query of the URL needs."""
        return {}

    def checked(self, answer: Answer, address: str) -> str:
        """Return what the answer to an empty body says; raises as `Sink.send` does."""
        raise NotImplementedError

    @abstractmethod
    def encode(self, batch: Batch) -> Encoded:
        """Encode the items of a batch."""

    @abstractmethod
    def body(self, encoded: Encoded) -> bytes:
        """Return the body of the request."""

    @abstractmethod
    def outcome(self, answer: Answer, key: str, encoded: Encoded, address: str) -> Outcome | None:
        """Return what an answer says about the batch; None if only its status counts.

        Raises as `Sink.send` does.
        """


class JsonFormat(Format):
    """NDJSON, or a JSON array of the same objects."""

    def __init__(self, options: Mapping[str, Any], *, array: bool) -> None:
        self._array = array
        self._receipts = options["receipts"]
        self.content_type = "application/json" if array else "application/x-ndjson"

    def encode(self, batch: Batch) -> Encoded:
        return ndjson.encode(batch)

    def body(self, encoded: Encoded) -> bytes:
        if self._array:
            return ndjson.array_of(encoded.texts).encode()
        return "".join([text + "\n" for text in encoded.texts]).encode()

    def outcome(self, answer: Answer, key: str, encoded: Encoded, address: str) -> Outcome | None:
        if not answer.is_success:
            return None
        if not self._receipts:
            if "html" in answer.content_type.lower():
                raise SinkUnreachable(
                    f"{address} answered with a web page (a login page, a proxy?): {answer}"
                )
            return Outcome()
        try:
            receipt = json.loads(answer.body)
            found, repeat = str(receipt["key"]), receipt.get("repeat") is True
            refused = tuple(_refused(one, len(encoded.texts)) for one in receipt.get("refused", ()))
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise SinkUnreachable(
                f"{address} answered without a receipt (a login page, a proxy?): {answer}. If it never gives receipts, "
                "set the option `receipts` of this sink to false"
            ) from error
        if found != key:
            raise SinkUnreachable(
                f"{address} answered with a receipt for another batch ({found[:_REASON_CHARS]!r}); check for a proxy "
                "or cache before the receiver"
            )
        return Outcome(refused, repeat)


def _refused(entry: Any, size: int) -> Item:
    row, reason, *more = entry
    if type(row) is not int or not 0 <= row < size:
        raise ValueError(f"{row!r} is not a row of the batch")
    return Item(row, str(reason)[:_REASON_CHARS], more == [True])


class InfluxFormat(Format):
    """Line protocol, as an InfluxDB of one version takes it."""

    takes_records = False
    takes_empty = True
    content_type = "text/plain; charset=utf-8"

    def __init__(self, options: Mapping[str, Any]) -> None:
        self._nanoseconds = options["precision"] == "ns"
        self._lines = LineProtocol(measurement=options["measurement"], nanoseconds=self._nanoseconds)
        self._options = options

    def encode(self, batch: Batch) -> Encoded:
        return self._lines.encode(batch.columns)

    def body(self, encoded: Encoded) -> bytes:
        return "\n".join(encoded.texts).encode()

    def outcome(
        self,
        answer: Answer,
        key: str,  # noqa: ARG002  InfluxDB returns none
        encoded: Encoded,
        address: str,
    ) -> Outcome | None:
        if answer.status == 204:
            return Outcome()
        message, listed = _error_of(answer)
        _refuse_misconfigured(answer, message, address)
        if answer.status == 201 and "partial write" in message:  # clusters of version 3
            raise SinkRefused(f"{address} stored a part of the batch: {answer}")
        if answer.is_success:
            raise SinkUnreachable(f"{address} did not answer 204, as InfluxDB does after a write: {answer}")
        if answer.status not in (400, 422) or "partial write" not in message:
            return None
        refused = self._refused(message, listed, encoded)
        if refused is None:
            raise SinkRefused(f"{address} stored a part of the batch: {answer}")
        return Outcome(refused)

    def checked(self, answer: Answer, address: str) -> str:
        if answer.status == 204:
            return "it accepts the login, and writes to this database"
        _refuse_misconfigured(answer, _error_of(answer)[0], address)
        if answer.is_success:
            raise SinkUnreachable(f"{address} did not answer 204, as InfluxDB does after a write: {answer}")
        error = rejected(answer, address)
        if isinstance(error, SinkRefused):  # some versions refuse an empty write, but only after the login
            return f"it answered an empty write with {answer}"
        raise error

    def _refused(self, message: str, listed: Any, encoded: Encoded) -> tuple[Item, ...] | None:
        """Return the items that a partial write rejected; None if the answer does not name all of them."""
        if isinstance(listed, list):
            return _listed(listed, encoded)
        quoted = _UNPARSABLE.findall(message)
        if quoted:
            rows = {text: row for row, text in enumerate(encoded.texts)}
            found = [(rows.get(line), why) for line, why in quoted]
            whole = len(quoted) == message.count("unable to parse") and "dropped=0" in message
            if not whole or any(row is None for row, _ in found):
                return None
            return tuple(Item(encoded.row(row), why[:_REASON_CHARS]) for row, why in found if row is not None)
        dropped = _DROPPED.search(message)
        if dropped is None or int(dropped[1]) != len(encoded.texts):
            return None
        too_late = "retention policy" in message
        return tuple(
            Item(encoded.row(text), message[:_REASON_CHARS], too_late) for text in range(len(encoded.texts))
        )


_MISCONFIGURED = {
    "database is required": "the options database and retention_policy",
    "retention policy not found": "the options database and retention_policy",
    "unsupported path requested": "the path in the URL",
}
"""What to check. InfluxDB 1 answers these with 400 and 500, and VictoriaMetrics with 400, as for a wrong point."""
_UNPARSABLE = re.compile(r"unable to parse '(.*?)': ([^\n]*?)(?= dropped=\d|\n|$)")
_DROPPED = re.compile(r"dropped=(\d+)")
_MOST_LISTED = 100
"""Some versions name no more lines than this."""


def _refuse_misconfigured(answer: Answer, message: str, address: str) -> None:
    if answer.is_success:
        return
    for words, cause in _MISCONFIGURED.items():
        if words in message:
            raise SinkHalted(f"{address} answered {answer}; check {cause}")


def _error_of(answer: Answer) -> tuple[str, Any]:
    """Return the message of InfluxDB's error, and its list of lines if it has one."""
    try:
        found = json.loads(answer.body)
    except (ValueError, RecursionError):
        return answer.body.decode("utf-8", "replace"), None
    if not isinstance(found, dict):
        return "", None
    return str(found.get("error") or found.get("message") or ""), found.get("data")


def _listed(listed: list[Any], encoded: Encoded) -> tuple[Item, ...] | None:
    """Return the items of version 3's list of lines, whose numbers begin at 1."""
    if len(listed) >= _MOST_LISTED and len(listed) < len(encoded.texts):
        return None
    items = []
    for entry in listed:
        number = entry.get("line_number") if isinstance(entry, dict) else None
        if type(number) is not int or not 1 <= number <= len(encoded.texts):
            return None
        items.append(Item(encoded.row(number - 1), str(entry.get("error_message"))[:_REASON_CHARS]))
    return tuple(items) or None


class Influx1(InfluxFormat):
    """`/write` of InfluxDB 1, which VictoriaMetrics, QuestDB and others also have."""

    path = "/write"

    def parameters(self) -> dict[str, str]:
        database, policy = self._options["database"], self._options["retention_policy"]
        return {
            **({"db": database} if database else {}),
            **({"rp": policy} if policy else {}),
            **({} if self._nanoseconds else {"precision": "u"}),
        }


class Influx2(InfluxFormat):
    """`/api/v2/write` of InfluxDB 2."""

    path = "/api/v2/write"
    token_scheme = "Token"  # noqa: S105  the scheme, no token

    def parameters(self) -> dict[str, str]:
        org, bucket = (_required(self._options, name, "influx2") for name in ("org", "bucket"))
        return {"org": org, "bucket": bucket, "precision": "ns" if self._nanoseconds else "us"}


class Influx3(InfluxFormat):
    """`/api/v3/write_lp` of InfluxDB 3."""

    path = "/api/v3/write_lp"

    def parameters(self) -> dict[str, str]:
        precision = "nanosecond" if self._nanoseconds else "microsecond"
        return {
            "db": _required(self._options, "database", "influx3"),
            "precision": precision,
            "accept_partial": "true",
        }


def _required(options: Mapping[str, Any], name: str, format_name: str) -> str:
    value: str | None = options[name]
    if value is None:
        raise InvalidSettings(f"a sink with format={format_name} needs the option {name}")
    return value


def format_of(options: Mapping[str, Any]) -> Format:
    """Return the format that the options name."""
    match options["format"]:
        case "influx1":
            return Influx1(options)
        case "influx2":
            return Influx2(options)
        case "influx3":
            return Influx3(options)
        case name:
            return JsonFormat(options, array=name == "json")
