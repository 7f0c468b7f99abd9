"""The folder sink: what it writes, what an import reads, and media that are full, unplugged, foreign or damaged."""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from repo import Settings, Store
from repo.delivery.sinks.folder import FolderSink
from repo.errors import HoldfastError, InvalidSettings, SinkHalted, SinkUnreachable, StoreForked
from repo.inputs.times import to_datetime
from repo.testing import Batches

START_US = 1_767_225_600_000_000


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "stick of Ω 100%"
    made.mkdir()
    (made / "holdfast-folder.json").touch()
    return made


def numbers(count: int, first: int = 0, value: float = 1.5) -> list[Any]:
    return [("W-1", "flow", START_US + at, value) for at in range(first, first + count)]


def files(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("store=*/*/*/*") if not path.name.endswith(".sha256"))


def read(folder: Path, place: Path) -> list[tuple[int, Any]]:
    with Store(place, Settings(engine="sqlite", background=False)) as store:
        store.import_parquet(folder, on_conflict="overwrite")
        return [
            (point["timestamp_us"] - START_US, point["value"]) for point in store.points.range("W-1", "flow")
        ]


def test_an_import_gets_the_last_value_of_each_point_and_imported_files_may_be_removed(
    folder: Path, tmp_path: Path
) -> None:
    sink, batches = FolderSink(folder.as_uri(), name="to/the hub"), Batches("to/the hub")
    assert sink.open(batches.store_id, 1) is None
    batches.deliver(sink, numbers(3))
    batches.deliver(sink, numbers(2, 1, 9.5), first_seq=50)  # overwritten, in the live lane
    batches.deliver(sink, numbers(3, 3), first_seq=4)
    batches.deliver(sink, [], last_seq=60)
    assert files(folder) == [
        "0000000001_1_3.ndjson.gz",
        "0000000002_50_51.ndjson.gz",
        "0000000003_4_6.ndjson.gz",
    ]
    expected = [(0, 1.5), (1, 9.5), (2, 9.5), (3, 1.5), (4, 1.5), (5, 1.5)]
    assert read(folder, tmp_path / "there") == expected
    for path in folder.glob("store=*/*/*/*"):
        path.unlink()
    again = FolderSink(folder.as_uri(), name="to/the hub")
    assert again.open(batches.store_id, 1) == batches.token
    batches.deliver(again, numbers(1, 6))
    assert files(folder) == ["0000000004_52_52.ndjson.gz"]
    assert read(folder, tmp_path / "there") == [*expected, (6, 1.5)]
    assert [held.taken.ranges for held in again.held(batches.store_id)] == [((1, 6), (50, 52))]


def test_an_attempt_without_an_end_leaves_nothing_and_a_repeat_writes_nothing(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, batches = FolderSink(folder.as_uri(), name="s"), Batches("s")
    batches.deliver(sink, numbers(2))
    batch = batches.points(numbers(2, 2))
    with monkeypatch.context() as broken:
        broken.setattr(FolderSink, "_write_position", _no_space)
        with pytest.raises(SinkUnreachable, match=r"No space left.*free some space"):
            sink.send(batch)
    assert len(files(folder)) == 2  # the file is there, and does not count
    assert sink.open(batches.store_id, 1) == batches.token
    shorter = replace(batch, last_seq=3).part(0, 1)
    sink.send(shorter)
    assert sink.send(shorter).repeat
    assert files(folder) == ["0000000001_1_2.ndjson.gz", "0000000002_3_3.ndjson.gz"]
    with pytest.raises(StoreForked):
        sink.send(Batches("s", store_id=batches.store_id).points(numbers(1)))
    assert len(read(folder, tmp_path / "there")) == 3


def test_a_position_that_is_lost_or_put_back_costs_no_file(folder: Path) -> None:
    """What was delivered may be nowhere else, so only what an interrupt has left is removed."""
    sink, batches = FolderSink(folder.as_uri(), name="s"), Batches("s")
    batches.deliver(sink, numbers(1))
    (position,) = (folder / "positions").iterdir()
    first = position.read_bytes()
    for at in (1, 2):
        batches.deliver(sink, numbers(1, at))
    last = position.read_bytes()
    everything = files(folder)
    assert len(everything) == 3

    position.unlink()
    assert sink.open(batches.store_id, 1) is None
    with pytest.raises(StoreForked):
        sink.send(batches.points(numbers(1, 3)))
    assert files(folder) == everything

    position.write_bytes(first)
    sink.open(batches.store_id, 1)
    with pytest.raises(StoreForked):
        sink.send(batches.points(numbers(1, 3)))
    for wrong in (b'"files": 1', b'"files": 0', b'"files": -3'):
        position.write_bytes(last.replace(b'"files": 3', wrong))
        with pytest.raises(SinkHalted, match=r"older than the files|damaged"):
            sink.send(batches.points(numbers(1, 3)))
        assert files(folder) == everything

    position.write_bytes(last)
    batches.deliver(sink, numbers(1, 3))
    assert len(files(folder)) == 4


def _no_space(*_: Any) -> None:
    raise OSError(28, "No space left on device")


def test_an_unplugged_medium_is_unreachable_and_another_one_halts(folder: Path, tmp_path: Path) -> None:
    sink, batches = FolderSink(folder.as_uri(), name="s"), Batches("s")
    batches.deliver(sink, numbers(2))
    folder.rename(tmp_path / "unplugged")
    with pytest.raises(SinkUnreachable, match="there is no folder"):
        sink.send(batches.points(numbers(2, 2)))
    folder.mkdir()  # the empty mount point
    with pytest.raises(SinkUnreachable, match="create an empty file"):
        sink.open(batches.store_id, 1)
    assert list(folder.iterdir()) == []
    (folder / "holdfast-folder.json").touch()
    with pytest.raises(SinkHalted, match="another folder than before"):
        sink.open(batches.store_id, 1)
    identity = json.loads((tmp_path / "unplugged" / "holdfast-folder.json").read_text())["folder"]
    with pytest.raises(SinkHalted, match=identity):
        FolderSink(folder.as_uri(), name="s", id=identity).open(batches.store_id, 1)
    (folder / "holdfast-folder.json").unlink()
    folder.rmdir()
    (tmp_path / "unplugged").rename(folder)
    assert sink.open(batches.store_id, 1) == batches.token
    batches.deliver(sink, numbers(2, 2))
    assert len(files(folder)) == 2


def test_a_check_notices_a_medium_that_cannot_be_written_to(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink, batches = FolderSink(folder.as_uri(), name="s"), Batches("s")
    sink.open(batches.store_id, 1)
    assert sink.check() == ""
    monkeypatch.setattr(
        "os.access", lambda _path, mode: mode != os.W_OK
    )  # a write-protected stick; root may write
    with pytest.raises(SinkHalted, match="cannot be written to"):
        sink.check()


@pytest.mark.parametrize("content", ["x", "[]", "{}", '{"format":"other"}', '{"format":"holdfast-folder"}'])
def test_a_damaged_or_foreign_file_halts_and_is_kept(folder: Path, content: str) -> None:
    sink, batches = FolderSink(folder.as_uri(), name="s"), Batches("s")
    batches.deliver(sink, numbers(1))
    (position,) = (folder / "positions").iterdir()
    for path in (position, folder / "holdfast-folder.json"):
        path.write_text(content)
        with pytest.raises(SinkHalted, match=r"damaged.*(copy|new id)|not a file of|newer version"):
            sink.open(batches.store_id, 1)
        assert path.read_text() == content


def test_names_settings_and_rights(folder: Path, tmp_path: Path) -> None:
    for target, options in (
        ("file:relative", {}),
        ("file://host/path", {}),
        ("http://host/path", {}),
        ("file:///a%00b", {}),
        ("file:///a?b", {}),
        ("file:///a", {"format": "csv"}),
        ("file:///a", {"other": "x"}),
        (5, {}),
    ):
        with pytest.raises(InvalidSettings):
            FolderSink(target, name="s", **options)  # type: ignore[arg-type]
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(SinkHalted, match="Not a directory"):
        FolderSink((file / "folder").as_uri(), name="s").open("0" * 32, 1)
    with pytest.raises(SinkHalted, match="too long"):
        FolderSink(folder.as_uri(), name="Ω" * 100).open("0" * 32, 1)
    sink, batches = FolderSink(folder.as_uri(), name="s"), Batches("s")
    refused = batches.deliver(sink, [*numbers(1), ("W\ud800", "flow", 5, 1.0)])
    assert list(refused) == [1]
    assert "lone surrogate" in refused[1]
    if os.geteuid() != 0:
        folder.chmod(0o500)
        with pytest.raises(HoldfastError):
            FolderSink(folder.as_uri(), name="t").open("f" * 32, 1)
        folder.chmod(0o700)


@pytest.mark.duckdb
@pytest.mark.parametrize("package", ["duckdb", "duckdb without a file system in memory", "pyarrow"])
def test_parquet_files_are_the_same_points(
    folder: Path, tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    if package == "pyarrow":
        pytest.importorskip("pyarrow")
        monkeypatch.setattr("repo.delivery.sinks.folder.duckdb_is_installed", lambda: False)
    else:
        monkeypatch.setitem(sys.modules, "pyarrow", None)
    if "without" in package:
        monkeypatch.delattr(os, "memfd_create", raising=False)
    sink, batches = FolderSink(folder.as_uri(), name="s", format="parquet"), Batches("s")
    mixed = [
        ("W-2", "flow", START_US + 5, -0.25),
        ("W-1", "state", START_US, "on", 5, '{"a":1}'),
        *numbers(3),
        ("W-2", "flow", START_US + 4, None),
    ]
    batches.deliver(sink, mixed)
    batches.deliver(sink, numbers(3_000, 3))
    sink.close()
    batches.deliver(sink, numbers(1, 5_000))
    assert files(folder) == [
        "0000000001_1_6.parquet",
        "0000000002_7_3006.parquet",
        "0000000003_3007_3007.parquet",
    ]
    with Store(tmp_path / "there", Settings(background=False)) as store:
        store.import_parquet(folder, on_conflict="overwrite")
        rows = list(store.points.range("*", "*", None, to_datetime(START_US + 6)))
    fields = ("sensor_id", "metric_name", "value", "quality", "metadata")
    found = [(*(one[field] for field in fields), one["timestamp_us"] - START_US) for one in rows]
    assert sorted(found, key=lambda one: (*one[:2], one[-1])) == [
        *(("W-1", "flow", 1.5, 100, None, at) for at in range(6)),
        ("W-1", "state", "on", 5, {"a": 1}, 0),
        ("W-2", "flow", None, 100, None, 4),
        ("W-2", "flow", -0.25, 100, None, 5),
    ]


@pytest.mark.duckdb
def test_parquet_files_need_neither_pyarrow_nor_an_instance_for_each(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = []

    def noting(*arguments: Any, **named: Any) -> Any:
        opened.append(arguments)
        return connect(*arguments, **named)

    duckdb = pytest.importorskip("duckdb")
    connect = duckdb.connect
    monkeypatch.setattr(duckdb, "connect", noting)
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    sink, batches = FolderSink(folder.as_uri(), name="s", format="parquet"), Batches("s")
    for at in range(3):
        batches.deliver(sink, numbers(2, 2 * at))
    sink.close()
    assert len(opened) == 1
