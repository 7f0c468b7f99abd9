"""The MQTT sink: publishes with QoS 1 or 2, and confirms a batch once the broker has acknowledged every message.

The target is `mqtt://HOST[:PORT][/TOPIC]` or `mqtts://` (TLS). The options are those of the kind `mqtt` in
`repo.store.sink_options`. Points go to the option `topic` below the topic of the target (`holdfast`), where
`{sensor_id}`, `{metric_name}` and `{store_id}` are replaced; in the names, `/`, `+`, `#`, `%`, and a `$` at the start,
become `%2F` and so on. Records go to `records_topic`, which may contain `{source}`.

With version 5, every message has the user property `holdfast-batch` (`STORE_ID.EPOCH.FIRST.LAST`), and the broker says
if it rejects a message. With version 3.1.1 a broker may acknowledge a message that its access list denies, and drop it.

The destination keeps no position: it gets each batch at least once, also with QoS 2, and cannot notice that a store is
a copy of another one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from hashlib import sha256
from string import Formatter
from typing import Any, NoReturn
from urllib.parse import unquote, urlsplit

from repo.delivery.encodings.messages import Message, Packer, labels_of
from repo.delivery.protocol import Batch, Item, Outcome
from repo.delivery.secrets import Secret
from repo.delivery.sinks.tls import client_context, halted_by_tls
from repo.errors import InvalidSettings, SinkHalted, SinkRefused, SinkUnreachable
from repo.extras import missing_extra
from repo.inputs.arguments import check_text, shown
from repo.store.sink_options import effective_options

__all__ = ["MqttSink"]

_PORTS = {"mqtt": 1883, "mqtts": 8883}
_SPECIAL = re.compile(r"[/+#%]|^\$")
_WILDCARDS = frozenset("+#")
_FAILURE = 0x80
"""Reason codes from here on are failures."""
_BUSY = frozenset({0x80, 0x88, 0x89, 0x97, 0x9F})
"""Reason codes of a refused connection that may pass by itself: unspecified, unavailable, busy, quota, rate."""
_QUOTA = 0x97
_WINDOW, _WINDOW_IF_UNKNOWN = 1000, 20
"""Messages on their way at a time. A broker of version 5 says how many it accepts; older ones may accept only 20."""
_MOST_IDS = 65_000
"""An unacknowledged message has an id of 16 bits."""


class MqttSink:
    """Publishes to an MQTT broker. For one thread; `open` comes first. Raises `MissingExtra` without paho-mqtt."""

    exact = False

    def __init__(self, target: str, *, name: str, **options: Any) -> None:
        self._name = check_text(name, "name", error=InvalidSettings)
        self._options = effective_options("mqtt", options)
        try:
            import paho.mqtt.client
        except ImportError as error:
            raise missing_extra("delivering to MQTT needs the package paho-mqtt", "mqtt") from error
        self._mqtt = paho.mqtt.client
        try:
            parts = urlsplit(check_text(target, "target", error=InvalidSettings))
            self._port = parts.port or _PORTS.get(parts.scheme, 0)
        except ValueError as error:
            raise InvalidSettings(f"{shown(target)} is not a URL: {error}") from error
        if parts.scheme not in _PORTS or not parts.hostname or parts.query:
            raise InvalidSettings(
                f"{shown(target)} is not a target such as mqtt://host:1883/topic or mqtts://host"
            )
        self._host = parts.hostname
        self._uses_tls = parts.scheme == "mqtts"
        self._address = f"{parts.scheme}://{parts.netloc}"
        self._is_5 = self._options["version"] == "5"
        _check_template(self._options["topic"], "topic", ("sensor_id", "metric_name", "store_id"))
        _check_template(self._options["records_topic"], "records_topic", ("source", "store_id"))
        above = unquote(parts.path.strip("/"))
        if _WILDCARDS & set(above) or "#" in target:
            raise InvalidSettings(f"{shown(target)}: a topic to publish to must not contain + or #")
        # Braces in the target are not fields.
        self._above = (above or "holdfast").replace("{", "{{").replace("}", "}}") + "/"
        self._store_id = ""
        self._packer = Packer(self._options, self._topic, self._records_topic)
        self._client: Any = None
        self._window = 1
        self._most_bytes: int | None = None
        self._answered: dict[int, int] = {}
        self._refusal: tuple[int, str] | None = None
        self._lost: str | None = None

    @property
    def name(self) -> str:
        """The name of the sink in the store."""
        return self._name

    @property
    def takes_records(self) -> bool:
        """Whether the format can express records."""
        return self._packer.takes_records

    def open(self, store_id: str, epoch: int) -> None:  # noqa: ARG002  it keeps no position
        """Read secrets and certificates, connect and log in. The destination holds no token."""
        self.close()
        if store_id != self._store_id:
            self._store_id = store_id
            self._packer = Packer(self._options, self._topic, self._records_topic)
        client = self._new_client(store_id)
        self._client, self._refusal, self._lost = client, None, None
        try:
            # No keep-alive: nobody could answer pings between batches. `send` opens a connection that was closed.
            client.connect(self._host, self._port, keepalive=0)
        except OSError as error:
            self._drop()
            raise halted_by_tls(error, self._address) or SinkUnreachable(
                f"{self._address} did not answer: {error or type(error).__name__}"
            ) from error
        limit = time.monotonic() + self._options["timeout_s"]
        while not client.is_connected():
            self._turn(limit, "did not answer")

    def send(self, batch: Batch) -> Outcome:
        """Publish a batch, and return once every message is acknowledged."""
        if self._client is not None:
            self._client.loop(0)
        if self._client is None or not self._client.is_connected():
            self.open(batch.store_id, batch.epoch)
        made = self._packer.messages(batch)
        refused = list(made.refused)
        sendable = []
        for message in made.messages:
            if reason := self._why_unsendable(message):
                refused += [Item(row, reason) for row in message[2]]
            else:
                sendable.append(message)
        answers: dict[int, int] = {}
        for first in range(0, len(sendable), _MOST_IDS):
            part = self._published(sendable[first : first + _MOST_IDS], self._properties(batch))
            answers |= {first + at: code for at, code in part.items()}
        denied = {at: code for at, code in answers.items() if code >= _FAILURE}
        if denied:
            self._judge(sendable, denied)
        for at, code in denied.items():
            refused += [Item(row, f"the broker answered {self._words(code)}") for row in sendable[at][2]]
        sent_bytes = sum(len(place) + len(payload) for place, payload, _ in sendable)
        return Outcome(tuple(sorted(refused)), sent_bytes=sent_bytes)

    def close(self) -> None:
        """Log out. Safe to call again."""
        client = self._client
        if client is not None and client.is_connected():
            client.disconnect()
            client.loop(0)
        self._drop()

    def _drop(self) -> None:
        """Close the connection without logging out."""
        client, self._client = self._client, None
        if client is not None:
            sock = client.socket()
            if sock is not None:
                sock.close()

    def _new_client(self, store_id: str) -> Any:
        mqtt = self._mqtt
        client_id = self._options["client_id"]
        if client_id is None:  # the same each time, of the 23 characters that every broker accepts
            client_id = "holdfast-" + sha256(f"{store_id}/{self._name}".encode()).hexdigest()[:14]
        client = mqtt.Client(
            mqtt.CallbackAPIVersion.VERSION2,
            client_id,
            protocol=mqtt.MQTTv5 if self._is_5 else mqtt.MQTTv311,
            clean_session=None if self._is_5 else True,
            reconnect_on_failure=False,
        )
        client.connect_timeout = self._options["timeout_s"]
        client.max_inflight_messages_set(0)  # `_published` keeps to the broker's limit
        user, password = self._options["user"], self._options["password"]
        if user is not None:
            known = Secret("password", password).reveal() if password is not None else None
            client.username_pw_set(Secret("user", user).reveal(), known)
        if self._uses_tls:
            client.tls_set_context(client_context(self._options))
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_publish = self._on_publish
        return client

    def _on_connect(self, _client: Any, _data: Any, _flags: Any, reason: Any, properties: Any) -> None:
        if reason.is_failure:
            self._refusal = reason.value, str(reason)
        most = self._options["inflight"] or (_WINDOW if self._is_5 else _WINDOW_IF_UNKNOWN)
        self._window = min(most, getattr(properties, "ReceiveMaximum", _MOST_IDS))
        self._most_bytes = getattr(properties, "MaximumPacketSize", None)

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        self._lost = str(reason)

    def _on_publish(self, _client: Any, _data: Any, mid: int, reason: Any, _properties: Any) -> None:
        self._answered[mid] = reason.value

    def _turn(self, limit: float, otherwise: str) -> None:
        """Let the client send and receive; raises if the link is gone or the time is over."""
        code = self._client.loop(max(0.0, min(1.0, limit - time.monotonic())))
        if self._refusal is not None:
            number, words = self._refusal
            self._drop()
            said = f"{self._address} refuses the connection: {words}"
            if number in _BUSY:
                raise SinkUnreachable(said)
            more = "; try the option version=3.1.1" if number == 0x84 and self._is_5 else ""
            raise SinkHalted(f"{said}; check user, password and client_id{more}")
        if code or self._lost is not None:
            self._gone()
        if time.monotonic() >= limit:
            self._drop()
            raise SinkUnreachable(f"{self._address} {otherwise} within {self._options['timeout_s']:g} s")

    def _published(self, messages: Sequence[Message], properties: Any) -> dict[int, int]:
        """Publish messages in order, and return the reason code of each, by its position."""
        positions: dict[int, int] = {}
        codes: dict[int, int] = {}
        self._answered = codes
        try:
            self._publish(messages, properties, positions, codes)
        except SinkUnreachable as error:
            # Some brokers also close the connection when they reject a message.
            denied = [code for code in codes.values() if code >= _FAILURE]
            if denied and len(codes) < len(messages):
                raise SinkRefused(
                    f"{self._address} answered {self._words(denied[0])} to a message"
                ) from error
            if not denied:
                raise
        return {positions[mid]: code for mid, code in codes.items() if mid in positions}

    def _publish(
        self, messages: Sequence[Message], properties: Any, positions: dict[int, int], codes: dict[int, int]
    ) -> None:
        """Publish messages in order, and note their ids in `positions`, until `codes` has an answer to each."""
        client, qos, retain = self._client, int(self._options["qos"]), self._options["retain"]
        limit = time.monotonic() + self._options["timeout_s"]
        for at, (place, payload, _) in enumerate(messages):
            while at - len(codes) >= self._window:
                limit = self._advanced(codes, limit)
            if self._is_5:  # read why a broker closes the connection before a write fails and hides it
                client.loop(0)
            info = client.publish(place, payload, qos, retain, properties)
            positions[info.mid] = at
            if info.rc:
                self._turn(limit, "took no message")
                self._gone()
        while len(codes) < len(messages):
            limit = self._advanced(codes, limit)

    def _advanced(self, codes: dict[int, int], limit: float) -> float:
        """Let the client receive answers; returns when to give up if no other one comes."""
        before = len(codes)
        self._turn(limit, "acknowledged nothing")
        return limit if len(codes) == before else time.monotonic() + float(self._options["timeout_s"])

    def _gone(self) -> NoReturn:
        lost = self._lost or "the link broke"
        self._drop()
        hint = ""
        if self._is_5 and self._options["qos"] == "2":  # paho-mqtt hides the broker's reason then
            hint = "; if it always does, it may deny a topic: qos=1 shows which"
        raise SinkUnreachable(f"{self._address} closed the connection: {lost}{hint}")

    def _properties(self, batch: Batch) -> Any:
        if not self._is_5:
            return None
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.properties import Properties

        properties: Any = Properties(PacketTypes.PUBLISH)  # type: ignore[no-untyped-call]
        properties.UserProperty = list(labels_of(batch).items())
        return _Packed(properties.pack())

    def _why_unsendable(self, message: Message) -> str:
        place, payload, _ = message
        size = len(place.encode())
        if size > 65_535:
            return "the topic is longer than 65,535 bytes"
        # The rest of a packet: the header, the lengths, and the properties.
        if self._most_bytes is not None and size + len(payload) + 300 > self._most_bytes:
            return f"the message is larger than the {self._most_bytes:,} bytes that the broker accepts"
        return ""

    def _judge(self, messages: Sequence[Message], denied: dict[int, int]) -> None:
        """Raise if the rejected messages do not mean that their items are at fault."""
        codes = {*denied.values()}
        said = f"{self._address} answered {self._words(min(codes))}"
        if _QUOTA in codes:
            raise SinkUnreachable(said)
        if len(denied) == len(messages) and len({place for place, *_ in messages}) > 1:
            raise SinkHalted(f"{said} to every message; check what the user may publish to")

    def _words(self, code: int) -> str:
        from paho.mqtt.packettypes import PacketTypes
        from paho.mqtt.reasoncodes import ReasonCode

        packet = PacketTypes.PUBACK if self._options["qos"] == "1" else PacketTypes.PUBCOMP
        return f"{ReasonCode(packet, identifier=code)} ({code})"

    def _topic(self, sensor: str, metric: str) -> str:
        template: str = self._above + self._options["topic"]
        return template.format(sensor_id=_level(sensor), metric_name=_level(metric), store_id=self._store_id)

    def _records_topic(self, source: str) -> str:
        template: str = self._above + self._options["records_topic"]
        return template.format(source=_level(source), store_id=self._store_id)


class _Packed:
    """Properties that are encoded once for all messages of a batch."""

    def __init__(self, packed: bytes) -> None:
        self._packed = packed

    def pack(self) -> bytes:
        return self._packed


def _level(name: str) -> str:
    """Return a name as one level of a topic."""
    return _SPECIAL.sub(lambda found: f"%{ord(found[0]):02X}", name)


def _check_template(template: str, option: str, fields: tuple[str, ...]) -> None:
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        raise InvalidSettings(f"{option} = {shown(template)}: {error}") from error
    for literal, field, form, conversion in parts:
        if field is not None and (field not in fields or form or conversion):
            raise InvalidSettings(
                f"{option} = {shown(template)}: the fields are {', '.join(f'{{{name}}}' for name in fields)}"
            )
        if _WILDCARDS & set(literal):
            raise InvalidSettings(
                f"{option} = {shown(template)}: a topic to publish to must not contain + or #"
            )
