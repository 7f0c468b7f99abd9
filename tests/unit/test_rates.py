"""Limits of bytes per second: how they are written, when they hold, and the bucket that keeps them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from repo.delivery.rate import BURST_S, Bucket, Speed, batch_bytes
from repo.errors import InvalidSettings
from repo.inputs.rates import Rate, parse_bytes_per_s
from repo.inputs.time_texts import parse_time


def _us(text: str) -> int:
    return parse_time(text, now_us=0)


def test_rates_are_bytes_per_second() -> None:
    assert parse_bytes_per_s("500kB/s") == 500_000
    assert parse_bytes_per_s("1.5 MB/s") == 1_500_000
    assert parse_bytes_per_s("64kbps".upper()) == 64_000
    assert parse_bytes_per_s("20B/s") == 20
    assert parse_bytes_per_s("0") == 0


@pytest.mark.parametrize("text", ["500kb", "500 kb/s", "500kbps"])
def test_a_small_b_is_refused_because_it_may_mean_bits(text: str) -> None:
    with pytest.raises(
        InvalidSettings, match=r"may mean bits or bytes; write 500 ?kB/s for bytes per second"
    ):
        parse_bytes_per_s(text)


def test_a_rate_of_0_says_when_it_ends() -> None:
    rate = Rate.of("0", ["08:00-18:00=100kB/s", "18:00-20:00=0"], "Europe/Berlin")
    assert rate.zero(_us("2026-01-05T17:30Z")) == "0 until 2026-01-06 08:00 (Europe/Berlin)"
    assert (
        Rate.of(None, ["22:00-06:00=0"]).zero(_us("2026-01-05T23:59:59Z")) == "0 until 2026-01-06 06:00 (UTC)"
    )
    assert Rate.of("0").zero(0) == "0"


@pytest.mark.parametrize("text", ["", "fast", "500", "500kbit/s", "-1kB/s", "1kB/min", "nan B/s", "1e9kB/s"])
def test_other_rates_are_refused_with_the_form(text: str) -> None:
    with pytest.raises(InvalidSettings, match="write bytes per second, such as 500kB/s"):
        parse_bytes_per_s(text)


@pytest.mark.parametrize(
    "text", ["", "08:00=1kB/s", "8-18=1kB/s", "24:00-25:00=1kB/s", "08:61-09:00=1kB/s", "08:00-08:00=1kB/s"]
)
def test_other_windows_are_refused_with_the_form(text: str) -> None:
    with pytest.raises(InvalidSettings, match="write its start, end and limit"):
        Rate.of(None, [text])


def test_an_unknown_zone_is_refused() -> None:
    with pytest.raises(InvalidSettings, match="no time zone 'Mars/Crater'"):
        Rate.of("1kB/s", [], "Mars/Crater")


def test_a_window_holds_by_the_clock_of_its_zone() -> None:
    rate = Rate.of("1MB/s", ["08:00-18:00=100kB/s", "22:00-06:00=0"], "Europe/Berlin")
    assert str(rate) == "1MB/s, 08:00-18:00=100kB/s, 22:00-06:00=0B/s (Europe/Berlin)"
    expected = {
        "2024-07-01T05:59:59Z": 1_000_000,
        "2024-07-01T06:00Z": 100_000,  # 08:00 in summer
        "2024-07-01T15:59Z": 100_000,
        "2024-07-01T16:00Z": 1_000_000,
        "2024-07-01T20:00Z": 0,
        "2024-07-02T03:59Z": 0,
        "2024-07-02T04:00Z": 1_000_000,
        "2024-01-15T06:30Z": 1_000_000,
        "2024-01-15T07:00Z": 100_000,  # 08:00 in winter
    }
    assert {text: rate.at(_us(text)) for text in expected} == expected
    assert Rate.of(None, ["00:00-24:00=5B/s"]).at(_us("2024-07-01T23:59:59Z")) == 5
    assert Rate.of(None).at(0) is None


@given(
    st.none() | st.integers(0, 10**12),
    st.lists(st.tuples(st.integers(0, 1439), st.integers(1, 1440), st.integers(0, 10**12)), max_size=3),
)
def test_the_stored_form_is_read_back(limit: int | None, windows: list[tuple[int, int, int]]) -> None:
    rate = Rate._make((limit, (), "-07:00"))
    rate = rate._replace(windows=tuple(Rate.from_json(rate.to_json()).windows))
    assert Rate.from_json(rate.to_json()) == rate


@given(
    st.integers(1, 10**7),
    st.lists(st.tuples(st.integers(1, 2_000_000), st.floats(0, 5)), min_size=1, max_size=50),
)
def test_a_bucket_keeps_the_limit_whatever_is_sent(limit: int, batches: list[tuple[int, float]]) -> None:
    now_s, sent, bucket = 100.0, 0, Bucket(100.0)
    for size, pause_s in batches:
        now_s += bucket.wait_s(now_s, limit)
        assert bucket.wait_s(now_s, limit) <= 1e-6 * max(1.0, now_s)
        assert sent <= limit * (now_s - 100.0 + BURST_S) * (1 + 1e-9) + 1
        bucket.take(size)
        sent += size
        now_s += pause_s


def test_a_bucket_follows_a_limit_that_changes() -> None:
    bucket = Bucket(0.0)
    assert bucket.wait_s(0.0, None) == 0.0
    bucket.take(10**9)
    assert bucket.wait_s(1.0, 1_000) == 0.0  # what was sent without a limit does not count
    bucket.take(5_000)
    assert bucket.wait_s(1.0, 1_000) == 4.0
    assert bucket.wait_s(1.0, 8_000) == 0.5
    assert bucket.wait_s(1.0, 0) == float("inf")
    assert bucket.wait_s(1.0, None) == 0.0


def test_a_slow_link_makes_smaller_batches_beside_another_lane() -> None:
    speed = Speed()
    assert speed.limit(1_000_000) == 131_072
    speed.note(500, 0.5)  # a few live readings, whose answer took half a second, say nothing
    assert speed.limit(1_000_000) == 131_072
    speed.note(1_000_000, 20.0)
    assert speed.limit(1_000_000) == 50_000
    for _ in range(10):
        speed.note(50_000, 50.0)
    assert speed.limit(1_000_000) == 16_384
    assert speed.limit(5_000) == 5_000
    for _ in range(10):
        speed.note(16_384, 0.001)
    assert speed.limit(1_000_000) == 1_000_000


def test_a_low_limit_makes_smaller_batches() -> None:
    assert batch_bytes(1_000_000, None) == 1_000_000
    assert batch_bytes(1_000_000, 10**9) == 1_000_000
    assert batch_bytes(1_000_000, 100_000) == 100_000
    assert batch_bytes(1_000_000, 10) == 4_096
