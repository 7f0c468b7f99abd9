"""The Kafka sink: an idempotent producer, one key per series, and a flush before a batch is confirmed.

The target is `kafka://HOST:PORT[,HOST:PORT...]/TOPIC`, or `kafka+ssl://` with TLS. The options are those of the kind
`kafka` in `repo.store.sink_options`; `librdkafka.NAME` sets a property of librdkafka. The key of a message is
`SENSOR_ID/METRIC_NAME`, in which `/` and `%` of a name become `%2F` and `%25`. So a series has one partition, and keeps
its order there. Records have their source as their key. Every message has the header `holdfast-batch`
(`STORE_ID.EPOCH.FIRST.LAST`).

Messages that the brokers have not confirmed stay in the producer, which sends them when the brokers are back: a link
that is down causes no repeat and no reordering as long as the process runs. A process that is killed repeats its last
batch. The topic keeps no position: it gets each batch at least once, and cannot notice that a store is a copy of
another one.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

from repo.delivery.encodings.messages import Message, Packer, labels_of
from repo.delivery.protocol import Batch, Item, Outcome
from repo.delivery.secrets import Secret
from repo.errors import InvalidSettings, SinkHalted, SinkUnreachable
from repo.extras import missing_extra
from repo.inputs.arguments import check_text, shown
from repo.store.sink_options import PREFIXES, effective_options

__all__ = ["KafkaSink"]

_SCHEMES: Final = {"kafka": "", "kafka+ssl": "SSL"}
_TURN_S = 0.5
_TOPIC = re.compile(r"[A-Za-z0-9._-]{1,249}")
_ITEM_ERRORS: Final = (
    "MSG_SIZE_TOO_LARGE",
    "INVALID_MSG",
    "INVALID_RECORD",
    "INVALID_TIMESTAMP",
    "RECORD_LIST_TOO_LARGE",
)
_HALTING: Final = (
    "_AUTHENTICATION", "_SSL", "_UNKNOWN_TOPIC", "_UNKNOWN_PARTITION", "_UNSUPPORTED_FEATURE", "UNKNOWN_TOPIC_OR_PART",
    "TOPIC_EXCEPTION", "TOPIC_AUTHORIZATION_FAILED", "CLUSTER_AUTHORIZATION_FAILED", "SASL_AUTHENTICATION_FAILED",
    "UNSUPPORTED_SASL_MECHANISM", "ILLEGAL_SASL_STATE", "POLICY_VIOLATION", "UNSUPPORTED_COMPRESSION_TYPE",
    "UNSUPPORTED_FOR_MESSAGE_FORMAT", "INVALID_REQUIRED_ACKS",
)  # fmt: skip


class KafkaSink:
    """Produces to a Kafka topic. For one thread; `open` comes first. Raises `MissingExtra` without confluent-kafka."""

    exact = False

    def __init__(self, target: str, *, name: str, **options: Any) -> None:
        self._name = check_text(name, "name", error=InvalidSettings)
        self._options = effective_options("kafka", options)
        try:
            import confluent_kafka
        except ImportError as error:
            raise missing_extra("delivering to Kafka needs the package confluent-kafka", "kafka") from error
        self._kafka = confluent_kafka
        scheme, _, rest = check_text(target, "target", error=InvalidSettings).partition("://")
        self._servers, _, topic = rest.partition("/")
        if scheme not in _SCHEMES or not self._servers or set(rest) & set("@?# "):
            raise InvalidSettings(
                f"{shown(target)} is not a target such as kafka://host:9092,host:9092/topic"
            )
        if not topic or not _TOPIC.fullmatch(topic):
            raise InvalidSettings(
                f"{shown(target)} names no topic of letters, digits, '.', '_' and '-': kafka://host:9092/topic"
            )
        self._topic = topic
        self._tls = _SCHEMES[scheme]
        self._packer = Packer(self._options, _key, _name)
        codes = confluent_kafka.KafkaError
        self._item_errors = frozenset(getattr(codes, one) for one in _ITEM_ERRORS if hasattr(codes, one))
        self._halting = frozenset(getattr(codes, one) for one in _HALTING if hasattr(codes, one))
        self._producer: Any = None
        self._error: Any = None
        self._in_flight: _InFlight | None = None

    @property
    def name(self) -> str:
        """The name of the sink in the store."""
        return self._name

    @property
    def takes_records(self) -> bool:
        """Whether the format can express records."""
        return self._packer.takes_records

    def open(self, store_id: str, epoch: int) -> None:  # noqa: ARG002  it keeps no position
        """Read secrets and reach the brokers. The destination holds no token.

        A producer with messages on their way is kept, so that they arrive once and in order.
        """
        if self._producer is None:
            self._producer = self._new_producer()
        self._error = None
        topic = self._topic
        try:
            found = self._producer.list_topics(topic, timeout=self._options["timeout_s"]).topics[topic]
        except self._kafka.KafkaException as error:
            raise self._failed(self._error or error.args[0]) from error
        if found.error is not None:
            raise self._failed(found.error)

    def send(self, batch: Batch) -> Outcome:
        """Produce a batch, and return once the brokers have stored every message."""
        if self._producer is None:
            self.open(batch.store_id, batch.epoch)
        made = self._packer.messages(batch)
        labels = labels_of(batch)
        # Unconfirmed messages come first. If they are this batch, unchanged, nothing else has to be produced.
        last, self._error = self._in_flight, None
        if last is not None:
            self._finish(last)
        if last is None or last.is_other(labels, made.messages):
            last = _InFlight(labels, made.messages)
            self._produce(last)
            self._finish(last)
        refused = [*made.refused, *last.refused]
        return Outcome(tuple(sorted(refused)), sent_bytes=made.size_bytes)

    def close(self) -> None:
        """End the producer. Messages that are not confirmed are given up, and sent again with their batch."""
        producer, self._producer, self._in_flight = self._producer, None, None
        if producer is not None:
            producer.purge()
            producer.flush(0)

    def _new_producer(self) -> Any:
        options = self._options
        user, password = options["user"], options["password"]
        configuration = {
            "client.id": f"holdfast-{self._name}",
            "linger.ms": 5,
            "compression.type": options["compression"],
            "partitioner": "murmur2_random",
            "sasl.mechanism": options["sasl_mechanism"],
            "security.protocol": f"SASL_{self._tls or 'PLAINTEXT'}" if user else self._tls or "PLAINTEXT",
            "ssl.ca.location": options["ca_file"],
            "ssl.certificate.location": options["cert_file"],
            "ssl.key.location": options["key_file"],
            "sasl.username": Secret("user", user).reveal() if user else None,
            "sasl.password": Secret("password", password).reveal() if password else None,
            "log_level": 2,
        }
        prefix = PREFIXES["kafka"]
        for option, value in options.items():
            if option.startswith(prefix):
                configuration[option.removeprefix(prefix)] = Secret(option, value).reveal()
        configuration |= {
            "bootstrap.servers": self._servers,
            "enable.idempotence": True,
            "message.timeout.ms": 0,
            "delivery.report.only.error": True,
            "error_cb": self._on_error,
        }
        try:
            return self._kafka.Producer({name: one for name, one in configuration.items() if one is not None})
        except self._kafka.KafkaException as error:  # also a file that cannot be read
            raise SinkHalted(
                f"the Kafka sink {self._name} cannot be set up: {_words(error.args[0])}"
            ) from error

    def _on_error(self, error: Any) -> None:
        """Keep an error that belongs to no message; librdkafka itself tries again."""
        if self._error is None or error.code() in self._halting or error.fatal():
            self._error = error

    def _produce(self, flight: _InFlight) -> None:
        self._in_flight = flight
        produce, topic, failed = self._producer.produce, self._topic, flight.note_failure
        headers = [(name, text.encode()) for name, text in flight.labels.items()]
        for at, (place, payload, _) in enumerate(flight.messages):
            try:
                try:
                    produce(topic, payload, place.encode(), on_delivery=failed, headers=headers)
                except BufferError:  # the producer's queue is full
                    self._produce_slowly(payload, place.encode(), on_delivery=failed, headers=headers)
            except self._kafka.KafkaException as error:
                if error.args[0].code() not in self._item_errors:
                    flight.messages = flight.messages[:at]
                    raise self._failed(error.args[0]) from error
                flight.failed[at] = error.args[0]
            except (SinkUnreachable, SinkHalted):
                flight.messages = flight.messages[:at]  # the producer has no others
                raise

    def _produce_slowly(self, *message: Any, **details: Any) -> None:
        """Produce a message, once the queue has room for it."""
        limit = time.monotonic() + self._options["timeout_s"]
        while True:
            self._wait(lambda: time.monotonic() >= limit)
            try:
                self._producer.produce(self._topic, *message, **details)
            except BufferError:
                continue
            return

    def _finish(self, flight: _InFlight) -> None:
        """Wait until every message is confirmed or failed; raises if one failed for a reason beyond itself."""
        limit = time.monotonic() + self._options["timeout_s"]
        while len(self._producer):
            self._wait(lambda: time.monotonic() >= limit)
        self._in_flight = None
        for error in flight.failed.values():
            if error.code() not in self._item_errors:
                raise self._failed(error)
        for at, error in flight.failed.items():
            flight.refused += [Item(row, f"Kafka answered {_words(error)}") for row in flight.messages[at][2]]
        flight.failed = {}

    def _wait(self, is_over: Callable[[], bool]) -> None:
        """Let the producer work for a moment; raises if the time is over or an error needs somebody's help."""
        self._producer.flush(_TURN_S)
        if self._error is not None and (self._error.fatal() or self._error.code() in self._halting):
            raise self._failed(self._error)
        if is_over():
            reason = f": {_words(self._error)}" if self._error is not None else ""
            raise SinkUnreachable(
                f"{self._servers} confirmed nothing within {self._options['timeout_s']:g} s{reason}"
            )

    def _failed(self, error: Any) -> SinkHalted | SinkUnreachable:
        said = f"{self._servers}, topic {self._topic}: {_words(error)}"
        if error.fatal():
            self.close()
            return SinkUnreachable(f"{said}; the producer starts again")
        if error.code() in self._halting:
            return SinkHalted(said)
        return SinkUnreachable(said)


class _InFlight:
    """The messages of a batch that the producer has."""

    def __init__(self, labels: Mapping[str, str], messages: Sequence[Message]) -> None:
        self.labels = labels
        self.messages = messages
        self.failed: dict[int, Any] = {}
        self.refused: list[Item] = []

    def is_other(self, labels: Mapping[str, str], messages: Sequence[Message]) -> bool:
        """Return whether a batch is another one, or was produced only in part."""
        return (self.labels, self.messages) != (labels, messages)

    def note_failure(self, error: Any, message: Any) -> None:
        """Note the failure of a message; it is called for no other."""
        if error is not None:
            key, value = message.key().decode(), message.value()
            for at, (place, payload, _) in enumerate(self.messages):
                if payload == value and place == key:
                    self.failed[at] = error


def _key(sensor: str, metric: str) -> str:
    return f"{_name(sensor)}/{_name(metric)}"


def _name(name: str) -> str:
    return name.replace("%", "%25").replace("/", "%2F")


def _words(error: Any) -> str:
    return f"{error.str()} ({error.name()})"
