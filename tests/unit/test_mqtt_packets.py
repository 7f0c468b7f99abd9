"""The packets of MQTT: as the standard has them, and in pieces of any length."""

from __future__ import annotations

import pytest

from repo.delivery.encodings.mqtt_packets import (
    DISCONNECT,
    PUBACK,
    PUBCOMP,
    PUBREC,
    Answer,
    Answers,
    Publications,
    release,
)


def test_a_message_is_a_packet_of_the_standard() -> None:
    old = Publications(qos=1, retain=False, properties=b"")
    assert old.packet(10, "a/b", b"5") == b"\x32\x08\x00\x03a/b\x00\x0a5"
    new = Publications(qos=2, retain=True, properties=b"\x02\x01\x01")
    assert new.packet(258, "é", b"") == b"\x35\x09\x00\x02\xc3\xa9\x01\x02\x02\x01\x01"
    assert release(258) == b"\x62\x02\x01\x02"


@pytest.mark.parametrize(
    ("size", "head"),
    [(127, b"\x7f"), (128, b"\x80\x01"), (16_384, b"\x80\x80\x01"), (2_097_152, b"\x80\x80\x80\x01")],
)
def test_a_length_has_seven_bits_in_each_byte(size: int, head: bytes) -> None:
    made = Publications(qos=1, retain=False, properties=b"").packet(1, "t", b"x" * (size - 5))
    assert made[1 : 1 + len(head)] == head
    assert len(made) == 1 + len(head) + size


def test_answers_are_whole_however_they_arrive() -> None:
    sent = (
        b"\x40\x02\x00\x01"  # no reason
        b"\x40\x03\x00\x02\x10"  # no subscribers
        b"\x50\x04\xff\xff\x87\x00"  # denied, with properties
        b"\x70\x02\x01\x00"
        b"\x40\x83\x01\x00\x03\x00\x7f"
        + b"\x1f" * 127
        + b"\xe0\x02\x8b\x00\xe0\x00"  # a long one, and two farewells
    )
    expected = [
        *(Answer(PUBACK, 1, 0), Answer(PUBACK, 2, 16), Answer(PUBREC, 65_535, 0x87), Answer(PUBCOMP, 256, 0)),
        *(Answer(PUBACK, 3, 0), Answer(DISCONNECT, 0, 0x8B), Answer(DISCONNECT, 0, 0)),
    ]
    for step in (1, 2, 3, 5, 7, len(sent)):
        answers = Answers()
        found = [one for at in range(0, len(sent), step) for one in answers.of(sent[at : at + step])]
        assert found == expected, step


@pytest.mark.parametrize(
    ("sent", "match"),
    [
        (b"HTTP/1.1 400 Bad Request", "begins with 0x48"),
        (b"\x40\x01\x00", "without the id"),
        (b"\x40\xff\xff\xff\xff\x01", "without a length"),
        (b"\x40\xff\xff\xff\x7f", "a packet of 268,435,455 bytes"),
        (b"\x30\x05\x00\x01tab", "begins with 0x30"),
    ],
)
def test_what_is_no_answer_is_an_error(sent: bytes, match: str) -> None:
    with pytest.raises(ValueError, match=match):
        list(Answers().of(sent))
