"""Options that commands share: names, time zones and time ranges; also formats times."""

from __future__ import annotations

from datetime import UTC, datetime, tzinfo

from repo.clock import system_clock
from repo.errors import InvalidQuery
from repo.times import parse_duration_us, parse_time, to_datetime

__all__ = ["bounds", "iso", "names_of", "zone_of"]


def zone_of(name: str) -> tzinfo:
    """Return the time zone of `--tz`; `InvalidQuery` for an unknown one."""
    from zoneinfo import ZoneInfo

    if name.upper() == "UTC":
        return UTC
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError) as error:
        raise InvalidQuery(f"--tz: there is no time zone {name!r}; use a name such as Europe/Oslo") from error


def bounds(
    start: str | None, end: str | None, since: str | None, zone: tzinfo
) -> tuple[datetime | None, datetime | None]:
    """Return the range of `--start` or `--since`, and `--end`; None leaves a side open."""
    if start is not None and since is not None:
        raise InvalidQuery("--start and --since cannot be combined")
    now_us = system_clock()
    if since is not None:
        start_us = now_us - parse_duration_us(since.removeprefix("-"))
        return to_datetime(start_us), _time(end, now_us, zone)
    return _time(start, now_us, zone), _time(end, now_us, zone)


def names_of(given: tuple[str, ...]) -> str | list[str] | None:
    """Return the selection of a repeatable option: a single name may be a glob, several names are exact.

    Raises `InvalidQuery` for a glob among several names, because as an exact name it would select nothing.
    """
    if not given:
        return None
    globs = [name for name in given if "*" in name or "?" in name]
    if len(given) > 1 and globs:
        raise InvalidQuery(
            f"{globs[0]!r} is a glob, which cannot be combined with other names; give one glob, or exact names"
        )
    return given[0] if len(given) == 1 else list(given)


def iso(time: datetime) -> str:
    """Return a time as ISO 8601, UTC as `Z`."""
    text = time.isoformat()
    return text[:-6] + "Z" if text.endswith("+00:00") else text


def _time(text: str | None, now_us: int, zone: tzinfo) -> datetime | None:
    return None if text is None else to_datetime(parse_time(text, now_us=now_us, zone=zone))
