"""`ingest`: reads files of readings into the store."""

from __future__ import annotations

import csv
import sys
import time
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Literal, Self, TextIO

import click

from repo.commands.exits import Exit
from repo.commands.global_options import global_options
from repo.commands.output import print_json
from repo.commands.session import Session
from repo.commands.texts import printable
from repo.errors import counted

if TYPE_CHECKING:
    from repo.formats.text.layout import Rejected
    from repo.transfer.ingest import Ingested
    from repo.transfer.ingest_input import Input

__all__ = ["ingest"]

_SHOWN_REJECTIONS = 20


@click.command()
@click.argument(
    "files",
    metavar="FILE...",
    nargs=-1,
    required=True,
    type=click.Path(exists=True, dir_okay=False, allow_dash=True),
)
@click.option(
    "--format",
    "form",
    type=click.Choice(["auto", "csv", "ndjson", "parquet"]),
    default="auto",
    show_default=True,
    help="File format; auto detects it from content and name.",
)
@click.option(
    "--shape",
    type=click.Choice(["auto", "long", "wide"]),
    default="auto",
    help="long: one reading per line; wide: one column per metric.",
)
@click.option("--sensor", metavar="NAME", help="Sensor of every line; replaces the sensor column.")
@click.option(
    "--metric", metavar="NAME", help="Metric of every line of a long file; replaces the metric column."
)
@click.option("--sensor-column", metavar="COLUMN", default="sensor_id", show_default=True)
@click.option("--metric-column", metavar="COLUMN", default="metric_name", show_default=True)
@click.option("--value-column", metavar="COLUMN", default="value", show_default=True)
@click.option(
    "--quality-column", metavar="COLUMN", default="quality", show_default=True, help="Optional column."
)
@click.option(
    "--time-column",
    metavar="COLUMN",
    multiple=True,
    default=["timestamp"],
    show_default=True,
    help="Repeat to join columns, such as a date and a time, with a space.",
)
@click.option(
    "--time-format",
    metavar="FORMAT",
    multiple=True,
    default=["iso"],
    show_default=True,
    help="iso, unix, unix_ms, unix_us, or a pattern such as %d/%m/%Y %H:%M. Repeat to try several in order. With "
    "iso, numbers in NDJSON and Parquet are Unix seconds.",
)
@click.option(
    "--zone",
    metavar="ZONE",
    default="UTC",
    show_default=True,
    help="Time zone of times without an offset: an IANA name, or an offset such as -07:00.",
)
@click.option(
    "--ambiguous",
    type=click.Choice(["refuse", "infer", "earlier", "later"]),
    default="refuse",
    show_default=True,
    help="How to read a local time that occurs twice when clocks go back; infer: by the order of the file.",
)
@click.option(
    "--only",
    metavar="COLUMN",
    multiple=True,
    help="Read only this metric; in a wide file, the column. Repeatable.",
)
@click.option(
    "--column",
    "columns",
    metavar="METRIC=COLUMN",
    multiple=True,
    callback=lambda _context, _parameter, given: _pairs(given),
    help="Read this column of a wide file, as METRIC. Repeatable; other columns are not read.",
)
@click.option("--ignore", metavar="COLUMN", multiple=True, help="Skip this column. Repeatable.")
@click.option(
    "--text",
    metavar="METRIC",
    multiple=True,
    help="This metric holds text values (states). Long NDJSON does not need it. Repeatable.",
)
@click.option(
    "--mixed",
    is_flag=True,
    help="Read every cell that is not a number as a state. A series is one kind, that of its first reading.",
)
@click.option("--on-off", is_flag=True, help="Read on, true and yes as 1, and off, false and no as 0.")
@click.option(
    "--missing",
    metavar="MARK",
    multiple=True,
    help="Treat MARK as no reading, in addition to null and, in CSV, empty cells, NA and NaN. -9999 matches -9999.0 "
    "too. Repeatable.",
)
@click.option(
    "--header",
    metavar="N|none",
    callback=lambda _context, _parameter, given: int(given[:9]) if given and given.isdecimal() else given,
    help="Line of the column names in CSV. Default: the first line. none: the file has no names, only positions.",
)
@click.option(
    "--skip", metavar="N", type=int, default=0, help="Skip N lines after the header, such as units."
)
@click.option("--footer", metavar="N", type=int, default=0, help="Skip the last N lines of the file.")
@click.option("--comment", metavar="PREFIX", help="Skip lines that begin with PREFIX.")
@click.option(
    "--delimiter",
    metavar="CHAR",
    help="Separator of CSV cells, or `tab`. Default: that of a first line such as sep=; or a comma, or tab in a .tsv "
    "file.",
)
@click.option("--decimal", type=click.Choice([".", ","]), default=".", show_default=True)
@click.option("--thousands", metavar="CHAR", help="Separator of thousands in numbers, such as a comma.")
@click.option("--encoding", metavar="NAME", default="utf-8", show_default=True)
@click.option(
    "--errors",
    "errors_file",
    metavar="FILE",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write rejections to this CSV file (file, line, column, reason, text); for Parquet, the reasons.",
)
@click.option(
    "--strict", is_flag=True, help="Validate everything first; write nothing if any row is rejected."
)
@global_options
@click.pass_obj
def ingest(
    session: Session,
    /,
    files: tuple[str, ...],
    errors_file: Path | None,
    strict: bool,
    encoding: str,
    form: Literal["auto", "csv", "ndjson", "parquet"],
    **options: Any,
) -> None:
    """Read CSV, NDJSON and Parquet files into the store.

    A long file has one reading per line: sensor, metric, time, value. A wide file has one column (or NDJSON key) per
    metric. COLUMN is a name or, in CSV, a position: #1 is the first. `-` reads standard input, except Parquet. gzip and
    zstd are decompressed. You can mix file formats. If several points share sensor, metric and time, the last one wins.
    Invalid rows are rejected with their line and a reason; the rest is written, and the exit code is 3. Ingesting the
    same file again changes nothing. docs/ingest.md has the commands for the files of many programs.

    \b
    JSON: {"path", "points": acknowledged, "overwritten": replaced an earlier one
    of this run, "rejected", "no_reading", "elapsed_s", "points_per_s", "files":
    [{"file", "points", "overwritten", "rejected", "no_reading"}]}
    """
    from repo.transfer.ingest_input import Input

    if errors_file is not None:
        _check_errors_file(session, errors_file, files)
    with ExitStack() as stack:
        known = None if form == "auto" else form
        inputs = []
        for file in files:
            source = sys.stdin.buffer if file == "-" else file
            name = "standard input" if file == "-" else file
            inputs.append(Input(source, name=name, encoding=encoding, form=known))
            stack.callback(inputs[-1].close)
        store = stack.enter_context(session.opened())
        progress = stack.enter_context(_Progress(shown=sys.stderr.isatty() and not session.quiet))
        rejections = stack.enter_context(_Rejections(session, errors_file, progress, many=len(files) > 1))
        done = store.ingest(
            inputs, strict=strict, progress=progress.show, on_rejected=rejections.add, **options
        )
    if session.as_json:
        print_json(done.as_dict())
    else:
        session.say(_summary(done, strict))
    if done.rejected:
        raise click.exceptions.Exit(Exit.PROBLEMS)


def _check_errors_file(session: Session, errors_file: Path, files: tuple[str, ...]) -> None:
    """Refuse a file that writing rejections to it would destroy."""
    if session.files().owns(errors_file) or any(
        errors_file.exists() and Path(file).exists() and errors_file.samefile(file) for file in files
    ):
        raise click.BadParameter(
            f"{errors_file} is an input file, or one of the store's own files; give another name",
            param_hint="--errors",
        )


def _pairs(given: tuple[str, ...]) -> dict[str, str]:
    """Return the values of `--column` as a mapping from metrics to columns."""
    found: dict[str, str] = {}
    for text in given:
        metric, equals, column = text.partition("=")
        if not equals or not metric:
            raise click.BadParameter(f"{text!r} is not METRIC=COLUMN")
        if metric in found:
            raise click.BadParameter(f"the metric {metric!r} is given twice")
        found[metric] = column
    return found


def _summary(done: Ingested, strict: bool) -> str:
    if strict and done.rejected:
        return f"nothing was written: {done.rejected:,} rejected"
    overwritten = f"{done.overwritten:,} overwritten by a later one, " if done.overwritten else ""
    return (
        f"{counted(done.points, 'point')} in {done.elapsed_s:.1f} s ({done.points_per_s:,}/s), "
        f"{overwritten}{done.no_reading:,} without a reading, {done.rejected:,} rejected"
    )


class _Progress:
    """A progress line on the terminal, updated a few times a second."""

    def __init__(self, *, shown: bool) -> None:
        self._shown = shown
        self._next_s = 0.0
        self._began_s = time.monotonic()
        self._length = 0

    def show(self, given: Input, readings: int) -> None:
        if not self._shown or (now_s := time.monotonic()) < self._next_s:
            return
        self._next_s = now_s + 0.2
        share = given.share_read
        part = "" if share is None else f"{share:>4.0%}  "
        rate = readings / max(now_s - self._began_s, 1e-3)
        line = f"{part}{printable(given.name)}  {readings:,} readings  {rate:,.0f}/s"
        sys.stderr.write("\r" + line.ljust(self._length))
        sys.stderr.flush()
        self._length = len(line)

    def clear(self) -> None:
        if self._length:
            sys.stderr.write("\r" + " " * self._length + "\r")
            self._length = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.clear()


class _Rejections:
    """Prints the first rejections, and writes all of them to a file, if one is given."""

    def __init__(self, session: Session, file: Path | None, progress: _Progress, *, many: bool) -> None:
        self._session = session
        self._path = file
        self._progress = progress
        self._many = many
        self._count = 0
        self._stream: TextIO | None = None
        self._writer: Any = None

    def add(self, given: Input, one: Rejected) -> None:
        self._count += 1
        if self._writer is not None:
            self._writer.writerow([given.name, one.line or "", one.column or "", one.reason, one.text])
        if self._count <= _SHOWN_REJECTIONS:
            self._progress.clear()
            self._session.note((f"{given.name}, " if self._many else "") + str(one))

    def __enter__(self) -> Self:
        if self._path is not None:
            self._stream = self._path.open("w", encoding="utf-8", errors="backslashreplace", newline="")
            self._writer = csv.writer(self._stream, lineterminator="\n")
            self._writer.writerow(["file", "line", "column", "reason", "text"])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._stream is not None:
            self._stream.close()
        more = self._count - _SHOWN_REJECTIONS
        if more > 0:
            where = f"all are in {self._path}" if self._path else "--errors FILE writes all of them to a file"
            self._session.note(f"and {more:,} more; {where}")
