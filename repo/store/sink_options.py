"""The options of each kind of sink: names, types, limits, defaults, and which of them are secrets. Opens nothing.

They are here, in a layer below the sinks, because a sink is checked when it is added to the store, and no secret may be
stored.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, Literal, TypeVar

from repo.errors import InvalidSettings
from repo.inputs.arguments import (
    LARGEST,
    check_choice,
    check_count,
    check_flag,
    check_seconds,
    check_text,
    shown,
)

__all__ = ["OPTIONS", "Option", "OptionValue", "check_options", "effective_options", "is_reference"]

OptionValue = str | int | float | bool
"""What an option is stored as."""

Number = TypeVar("Number", int, float)

_MOST_CHARS = 4096


@dataclass(frozen=True, slots=True)
class Option:
    """One option of a sink."""

    about: str
    """What it means, for people."""
    type: Literal["text", "secret", "choice", "flag", "count", "seconds", "user"] = "text"
    default: OptionValue | None = None
    choices: tuple[str, ...] = ()
    least: float = 1
    most: float = LARGEST


_TIMEOUT = Option(
    "seconds to connect, and to wait for each answer", "seconds", 30.0, least=0.01, most=86_400.0
)
_USER = Option("user name, or env:NAME or file:PATH", "user")
_PASSWORD = Option("password", "secret")
_TLS = {
    "ca_file": Option("file with the certificates to trust (PEM), instead of the system's"),
    "cert_file": Option("file with the client's certificate (PEM)"),
    "key_file": Option("file with the key of the client's certificate (PEM)"),
}
_MEASUREMENT = Option("line protocol: one measurement for all points; the metric is a tag then")
_PRECISION = Option("line protocol: unit of the times", "choice", "us", ("us", "ns"))

OPTIONS: Final[Mapping[str, Mapping[str, Option]]] = {
    "own": {},
    "postgresql": {
        "user": _USER,
        "password": _PASSWORD,
        "schema": Option("the schema of the tables", default="holdfast"),
        "create": Option("whether to create and upgrade the tables", "flag", default=True),
        "timeout_s": Option(
            "the longest wait for a connection or a lock, in seconds", "seconds", 30.0, least=2, most=86_400
        ),
    },
    "folder": {
        "format": Option("form of the files", "choice", "ndjson", ("ndjson", "parquet")),
        "id": Option("id of the folder, as in its holdfast-folder.json; a folder with another one halts"),
    },
    "holdfast": {
        "token": Option("bearer token that the receiver knows", "secret"),
        "compression": Option("compression of the body", "choice", "gzip", ("gzip", "none")),
        "timeout_s": _TIMEOUT,
        **_TLS,
    },
    "kafka": {
        "format": Option("form of the messages", "choice", "json", ("json", "ndjson", "influx")),
        "compression": Option(
            "compression of the messages", "choice", "lz4", ("none", "gzip", "snappy", "lz4", "zstd")
        ),
        "user": _USER,
        "password": _PASSWORD,
        "sasl_mechanism": Option(
            "how the user logs in", "choice", "PLAIN", ("PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512")
        ),
        "measurement": _MEASUREMENT,
        "precision": _PRECISION,
        "timeout_s": _TIMEOUT,
        **_TLS,
    },
    "mqtt": {
        "topic": Option(
            "topic of points below that of the URL, with {sensor_id}, {metric_name}, {store_id}",
            default="{sensor_id}/{metric_name}",
        ),
        "records_topic": Option(
            "topic of records below that of the URL, with {source}, {store_id}", default="records/{source}"
        ),
        "format": Option("form of the messages", "choice", "json", ("json", "ndjson", "influx")),
        "qos": Option("quality of service", "choice", "1", ("1", "2")),
        "retain": Option("whether the broker keeps the last message of each topic", "flag", default=False),
        "version": Option("version of MQTT", "choice", "5", ("5", "3.1.1")),
        "client_id": Option("client id; by default made of the store's id and the name of the sink"),
        "inflight": Option(
            "messages on their way at a time; by default what the broker accepts, up to 1,000 (version 3.1.1: 20)",
            "count",
            most=65_000,
        ),
        "user": _USER,
        "password": _PASSWORD,
        "measurement": _MEASUREMENT,
        "precision": _PRECISION,
        "timeout_s": _TIMEOUT,
        **_TLS,
    },
    "http": {
        "format": Option(
            "form of the body", "choice", "ndjson", ("ndjson", "json", "influx1", "influx2", "influx3")
        ),
        "receipts": Option(
            "json, ndjson: only an answer with the key of the batch counts", "flag", default=True
        ),
        "compression": Option("compression of the body", "choice", "gzip", ("gzip", "zstd", "none")),
        "token": Option("token for the header Authorization", "secret"),
        "user": _USER,
        "password": _PASSWORD,
        "database": Option("influx1, influx3: database"),
        "retention_policy": Option("influx1: retention policy"),
        "org": Option("influx2: organization"),
        "bucket": Option("influx2: bucket"),
        "measurement": _MEASUREMENT,
        "precision": _PRECISION,
        "timeout_s": _TIMEOUT,
        **_TLS,
    },
}
"""Options by kind and name. The sink modules say what they do."""

PREFIXES: Final[Mapping[str, str]] = {"http": "header.", "kafka": "librdkafka."}
"""Per kind: a prefix that makes any name an option, passed on to the library or the protocol that the sink uses."""

_SECRET_NAME = re.compile("auth|cookie|credential|key|password|pem|secret|token", re.IGNORECASE)
_REFERENCE = re.compile(r"(env|file):(.+)", re.DOTALL)


def is_reference(value: object) -> bool:
    """Return whether a value names the place of a secret: `env:NAME` or `file:PATH`."""
    return isinstance(value, str) and _REFERENCE.fullmatch(value) is not None


def check_options(kind: str, options: Mapping[str, object], *, stored: bool) -> dict[str, OptionValue]:
    """Return the options with the types that the kind of sink expects; texts from the command line are converted.

    With `stored`, a secret must be a reference (`env:NAME` or `file:PATH`). Raises `InvalidSettings`, which never
    shows the value of a secret.
    """
    known = OPTIONS.get(kind)
    if known is None:
        raise InvalidSettings(
            f"{shown(kind)} is not a kind of sink; the kinds are {', '.join(sorted(OPTIONS))}"
        )
    checked = {}
    for name, value in options.items():
        option = known.get(name) if isinstance(name, str) else None
        if option is None and kind in PREFIXES and str(name).startswith(PREFIXES[kind]):
            option = Option("", "secret" if _SECRET_NAME.search(name) else "text")
            value = str(value) if isinstance(value, (int, float)) else value
        if option is None:
            raise InvalidSettings(
                f"a sink of the kind {kind} has no option {shown(name)}; its options are "
                f"{', '.join(sorted(known)) or 'none'}"
            )
        checked[name] = _checked(name, value, option, stored)
    return checked


def effective_options(kind: str, options: Mapping[str, object]) -> dict[str, Any]:
    """Return all options of a sink: those given, checked, and the defaults of the others (None if there is none)."""
    checked = check_options(kind, options, stored=False)
    return {**{name: option.default for name, option in OPTIONS[kind].items()}, **checked}


def _checked(name: str, value: object, option: Option, stored: bool) -> OptionValue:
    match option.type:
        case "secret":
            return _secret(name, value, stored)
        case "flag":
            words = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}
            given = words.get(value.lower(), value) if isinstance(value, str) else value
            return check_flag(given, name, error=InvalidSettings)
        case "choice":
            return check_choice(str(value), name, option.choices, error=InvalidSettings)
        case "count":
            number = _number(name, value, int)
            return _limited(name, check_count(number, name, int(option.least), error=InvalidSettings), option)
        case "seconds":
            number = _number(name, value, float)
            return _limited(name, check_seconds(number, name, option.least, error=InvalidSettings), option)
        case _:
            return _text(name, value)


def _secret(name: str, value: object, stored: bool) -> str:
    if not isinstance(value, str) or not value or not value.isprintable():
        raise InvalidSettings(f"{name}: a text in one line is expected")  # never shown: it may be the secret
    if stored and not is_reference(value):
        raise InvalidSettings(
            f"{name}: a secret is not stored; name an environment variable or a file: {name}=env:NAME or "
            f"{name}=file:PATH"
        )
    return value


def _text(name: str, value: object) -> str:
    text = check_text(value, name, error=InvalidSettings)
    if not text or not text.isprintable() or len(text) > _MOST_CHARS:
        raise InvalidSettings(
            f"{name} = {shown(text)}: a text in one line is expected, of at most {_MOST_CHARS:,} characters"
        )
    return text


def _number(name: str, value: object, to: type[int] | type[float]) -> object:
    if not isinstance(value, str):
        return value
    try:
        return to(value)
    except ValueError as error:
        raise InvalidSettings(f"{name} = {shown(value)}: a number is expected") from error


def _limited(name: str, number: Number, option: Option) -> Number:
    if number > option.most:
        raise InvalidSettings(f"{name} = {number}: at most {option.most:g}")
    return number
