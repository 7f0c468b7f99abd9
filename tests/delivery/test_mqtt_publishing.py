"""Publishing over one connection of MQTT, with a broker of a few lines: windows, answers, and how connections end."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from repo.delivery.encodings.messages import Message
from repo.delivery.encodings.mqtt_packets import Publications, release
from repo.delivery.sinks.mqtt_publishing import ConnectionLost, Publishing

MESSAGES: list[Message] = [("t", f"{number}".encode(), ()) for number in range(1, 7)]
AT_LEAST_ONCE = Publications(qos=1, retain=False, properties=b"")
EXACTLY_ONCE = Publications(qos=2, retain=False, properties=b"")


class Link(NamedTuple):
    client: socket.socket
    broker: socket.socket

    def publishing(self, window: int) -> Publishing:
        return Publishing(self.client, window=window, timeout_s=0.05)

    def published(self) -> list[int]:
        """Return the ids of the messages that have arrived; each packet has eight bytes."""
        data = self.broker.recv(10_000)
        assert len(data) % 8 == 0
        return [data[at + 6] for at in range(0, len(data), 8)]


@pytest.fixture
def link() -> Iterator[Link]:
    client, broker = socket.socketpair()
    client.setblocking(False)
    broker.settimeout(5)
    with client, broker:
        yield Link(client, broker)


def acknowledged(*numbers: int) -> bytes:
    return b"".join(b"\x40\x02\x00" + bytes([number]) for number in numbers)


def test_a_full_window_waits_for_answers(link: Link) -> None:
    codes: dict[int, int] = {}
    with pytest.raises(TimeoutError):
        link.publishing(2).publish(MESSAGES, AT_LEAST_ONCE, codes)
    assert (codes, link.published()) == ({}, [1, 2])


def test_answers_make_room_for_the_next_messages(link: Link) -> None:
    codes: dict[int, int] = {}
    link.broker.sendall(acknowledged(1, 2))
    with pytest.raises(TimeoutError):
        link.publishing(2).publish(MESSAGES, AT_LEAST_ONCE, codes)
    assert (codes, link.published()) == ({0: 0, 1: 0}, [1, 2, 3, 4])


def test_suspected_messages_are_sent_one_by_one(link: Link) -> None:
    def sent(*acked: int) -> list[int]:
        link.broker.sendall(acknowledged(*acked))
        with pytest.raises(TimeoutError):
            link.publishing(3).publish(MESSAGES, AT_LEAST_ONCE, {}, one_by_one=range(1, 3))
        return link.published()

    assert sent() == [1]
    assert sent(1) == [1, 2]
    link.broker.sendall(acknowledged(1))
    codes = {0: 0, 1: 0}  # as if both were answered before
    publishing = link.publishing(3)
    with pytest.raises(TimeoutError):
        publishing.publish(MESSAGES, AT_LEAST_ONCE, codes, one_by_one=range(1, 2))
    assert link.published() == [1, 2, 3, 4, 5]


def test_an_answer_to_no_message_confirms_nothing(link: Link) -> None:
    codes: dict[int, int] = {}
    link.broker.sendall(acknowledged(0, 9, 200))
    with pytest.raises(TimeoutError):
        link.publishing(5).publish(MESSAGES, AT_LEAST_ONCE, codes)
    assert codes == {}


def test_with_qos_2_a_message_counts_once_it_is_released(link: Link) -> None:
    codes: dict[int, int] = {}
    link.broker.sendall(b"\x50\x02\x00\x01" + b"\x50\x03\x00\x02\x87")
    with pytest.raises(TimeoutError):
        link.publishing(2).publish(MESSAGES[:2], EXACTLY_ONCE, codes)
    assert codes == {1: 0x87}  # a denied one needs no release
    assert link.broker.recv(1_000).endswith(release(1))
    link.broker.sendall(b"\x50\x02\x00\x01" + b"\x70\x02\x00\x01")
    link.publishing(2).publish(MESSAGES[:1], EXACTLY_ONCE, codes := {})
    assert codes == {0: 0}


def test_what_was_answered_before_a_loss_is_known(link: Link) -> None:
    codes: dict[int, int] = {}
    link.broker.sendall(acknowledged(1, 2) + b"\xe0\x01\x97")
    with pytest.raises(ConnectionLost) as lost:
        link.publishing(6).publish(MESSAGES, AT_LEAST_ONCE, codes)
    assert (lost.value.reason, codes) == (0x97, {0: 0, 1: 0})


def test_answers_that_came_before_the_end_count_though_nothing_can_be_written(link: Link) -> None:
    codes: dict[int, int] = {}
    link.broker.sendall(acknowledged(1, 2, 3))
    link.broker.close()
    with pytest.raises(ConnectionLost):
        link.publishing(6).publish(MESSAGES, AT_LEAST_ONCE, codes)
    assert codes == {0: 0, 1: 0, 2: 0}


def test_a_connection_that_ends_after_the_last_answer_has_taken_everything(link: Link) -> None:
    codes: dict[int, int] = {}
    link.broker.sendall(acknowledged(*range(1, 7)))
    link.broker.shutdown(socket.SHUT_WR)
    publishing = link.publishing(6)
    publishing.publish(MESSAGES, AT_LEAST_ONCE, codes)
    assert len(codes) == 6
    with pytest.raises(ConnectionLost):
        publishing.check()
