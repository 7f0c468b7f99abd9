"""The registry of sinks: which class serves which kind. Imports a sink's module, and its package, when it is used."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import suppress
from importlib import import_module
from typing import Final

from repo.delivery.protocol import Sink
from repo.errors import InvalidSettings, MissingExtra
from repo.inputs.arguments import shown
from repo.store.sink_options import check_options
from repo.store.targets import parse_target

__all__ = ["SINKS", "check_sink", "sink_of"]

SINKS: Final[dict[str, str]] = {
    "postgresql": "repo.delivery.sinks.postgresql:PostgresqlSink",
    "folder": "repo.delivery.sinks.folder:FolderSink",
    "holdfast": "repo.delivery.sinks.holdfast:HoldfastSink",
    "kafka": "repo.delivery.sinks.kafka:KafkaSink",
    "mqtt": "repo.delivery.sinks.mqtt:MqttSink",
    "http": "repo.delivery.sinks.http:HttpSink",
}
"""`module:class` by kind. Each class is called as `Class(target, name=..., **options)`. It opens nothing then."""


def check_sink(name: str, target: str, options: Mapping[str, object]) -> None:
    """Check the arguments of a sink, including rules that only its class knows, such as an option that a format needs.

    Raises `InvalidSettings`. Connects to nothing, and reads no secret. A package that is missing here may be installed
    where the sink is used.
    """
    kind, url = parse_target(target)
    with suppress(MissingExtra):
        sink_of(name, kind, url, options)


def sink_of(name: str, kind: str, target: str, options: Mapping[str, object]) -> Sink:
    """Return the sink of a row of the table of sinks; it connects, and reads its secrets, when it is opened.

    Raises `InvalidSettings` for an unknown kind, target or option, and `MissingExtra` if the sink needs a package that
    is not installed. `own` sinks, whose class is the caller's, are in no registry.
    """
    if kind not in SINKS:
        raise InvalidSettings(
            f"{shown(kind)} is not a kind of sink; the kinds are {', '.join(sorted(SINKS))}"
        )
    checked = check_options(kind, options, stored=True)
    module, _, attribute = SINKS[kind].partition(":")
    sink: Sink = getattr(import_module(module), attribute)(target, name=name, **checked)
    return sink
