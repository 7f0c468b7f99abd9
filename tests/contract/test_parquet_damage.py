"""Damaged and hostile files raise an error that names the file, change nothing, and use bounded memory."""

from __future__ import annotations

import json
import os
import shutil
import struct
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from repo import HoldfastError, InvalidFile, Store, StoreCorrupt
from tests.conftest import OpenStore, RunPython
from tests.contract.parquet_files import stored, write
from tests.contract.test_parquet_export import fill

pytestmark = pytest.mark.shared_stores


def damaged(bundle: Path, case: str) -> None:
    manifest = json.loads((bundle / "manifest.json").read_text())
    last = bundle / manifest["files"][-1]["path"]
    if case == "missing":
        last.unlink()
    elif case == "cut short":
        os.truncate(last, last.stat().st_size - 1)
    elif case == "another day's file":
        shutil.copy(bundle / manifest["files"][1]["path"], last)
    elif case == "a link to a file outside":
        shutil.move(last, bundle.parent / "outside.parquet")
        last.symlink_to(bundle.parent / "outside.parquet")
    elif case == "a link to a folder outside":
        shutil.move(last.parent, bundle.parent / "outside")
        last.parent.symlink_to(bundle.parent / "outside")
    elif case == "a path outside":
        shutil.copy(last, bundle.parent / "outside.parquet")
        manifest["files"][-1]["path"] = "../outside.parquet"
    elif case == "an absolute path":
        manifest["files"][-1]["path"] = str(last)
    elif case == "no name of a file":
        manifest["files"][-1]["path"] = "\ud800.parquet"
    elif case == "too few points":
        manifest["files"][-1]["points"] -= 1
        manifest["points"] -= 1
    elif case == "a newer version":
        manifest["version"] = 2
    elif case == "another sum":
        manifest["points"] += 1
    elif case == "no manifest of ours":
        manifest = ["hello"]
    (bundle / "manifest.json").write_text(json.dumps(manifest))


@pytest.mark.fresh_stores
@pytest.mark.parametrize(
    "case",
    [
        *(
            "missing",
            "cut short",
            "another day's file",
            "a link to a file outside",
            "a link to a folder outside",
        ),
        *("a path outside", "an absolute path", "no name of a file", "too few points"),
        *("a newer version", "another sum"),
        "no manifest of ours",
    ],
)
@pytest.mark.slow_on("sqlite")
def test_an_incomplete_bundle_is_refused_completely(open_store: OpenStore, bundle: Path, case: str) -> None:
    damaged(bundle, case)
    target = open_store("target")
    with pytest.raises((InvalidFile, StoreCorrupt)) as caught:
        target.import_parquet(bundle)
    assert str(bundle) in str(caught.value)
    assert target.sinks.last_seq() == 0


@pytest.mark.fresh_stores
@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize(
    "case", ["whole", "missing", "another day's file", "a link to a file outside", "draft"]
)
def test_a_bundle_inside_a_folder_is_compared_with_its_manifest(
    open_store: OpenStore, bundle: Path, tmp_path: Path, case: str
) -> None:
    if case == "draft":
        manifest = json.loads((bundle / "manifest.json").read_text())
        lines = [{}, *manifest["files"][:2]]
        (bundle / "export.ndjson").write_text("".join(json.dumps(line) + "\n" for line in lines))
        (bundle / "manifest.json").unlink()
    else:
        damaged(bundle, case)
    (tmp_path / "stick" / "2024").mkdir(parents=True)
    shutil.move(bundle, tmp_path / "stick" / "2024" / "may")
    write(tmp_path / "stick" / "other.parquet", sensor_id=["other", "other"])
    target = open_store("target")
    if case in ("whole", "draft"):
        done = target.import_parquet(tmp_path / "stick")
        assert done.files == done.verified + 1 == (4 if case == "whole" else 3)
    else:
        with pytest.raises((InvalidFile, StoreCorrupt), match="stick"):
            target.import_parquet(tmp_path / "stick")
        assert target.sinks.last_seq() == 0


@pytest.mark.fresh_stores
@pytest.mark.slow_on("sqlite")
def test_every_flipped_bit_is_found(open_store: OpenStore, tmp_path: Path, seed: int) -> None:
    import random

    source, target = open_store("source"), open_store("target")
    fill(source)
    source.export_parquet(tmp_path / "out.parquet")
    whole = (tmp_path / "out.parquet").read_bytes()
    chance = random.Random(seed)
    for _ in range(10):  # at different places in each run
        broken = bytearray(whole)
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        (tmp_path / "out.parquet").write_bytes(broken)
        with pytest.raises(StoreCorrupt, match=r"out\.parquet is damaged"):
            target.import_parquet(tmp_path / "out.parquet")
    assert target.sinks.last_seq() == 0


@pytest.mark.slow_on("sqlite")
def test_a_flipped_bit_in_a_manifest_is_found_or_changes_nothing(
    open_store: OpenStore, bundle: Path, seed: int
) -> None:
    import random

    target = open_store("target")
    whole = (bundle / "manifest.json").read_bytes()
    expected = target.import_parquet(bundle, dry_run=True)
    chance = random.Random(seed)
    for _ in range(10):
        broken = bytearray(whole)
        broken[chance.randrange(len(broken))] ^= 1 << chance.randrange(8)
        (bundle / "manifest.json").write_bytes(broken)
        try:
            reported = target.import_parquet(bundle, dry_run=True)
        except (InvalidFile, StoreCorrupt):
            continue
        assert reported == expected


def nothing_of_a_file(path: Path, case: str) -> None:
    good = write(path.with_name("good.parquet"))
    content = good.read_bytes()
    good.unlink()
    if case == "empty":
        path.touch()
    elif case == "a text":
        path.write_text("sensor_id,metric_name\n" * 100)
    elif case == "only magic":
        path.write_bytes(b"PAR1PAR1")
    elif case == "cut short":
        path.write_bytes(content[: len(content) // 2])
    elif case == "a footer too long":
        path.write_bytes(content[:-8] + struct.pack("<I", 2**31) + b"PAR1")
    elif case == "encrypted":
        path.write_bytes(content[:-4] + b"PARE")
    elif case == "a pipe":
        os.mkfifo(path)
    elif case == "a device":
        path.symlink_to("/dev/zero")
    elif case == "a folder of nothing":
        path.mkdir()
    elif case == "a link in a circle":
        path.symlink_to(path)


@pytest.mark.slow_on("sqlite")
@pytest.mark.parametrize(
    "case",
    [
        *(
            "missing",
            "empty",
            "a text",
            "only magic",
            "cut short",
            "a footer too long",
            "encrypted",
            "a pipe",
        ),
        *("a device", "a folder of nothing", "a link in a circle"),
    ],
)
def test_a_file_that_is_not_parquet_is_named(unwritten: Store, tmp_path: Path, case: str) -> None:
    path = tmp_path / "it's [bad].parquet"
    nothing_of_a_file(path, case)
    with pytest.raises(InvalidFile) as caught:
        unwritten.import_parquet(path)
    assert str(path) in str(caught.value)
    assert "/dev/fd" not in str(caught.value)
    assert unwritten.sinks.last_seq() == 0


def test_a_name_is_never_a_pattern(store: Store, tmp_path: Path) -> None:
    write(tmp_path / "g1.parquet", value=[1.0, 2.0])
    write(tmp_path / "g[1].parquet", value=[3.0, 4.0])
    store.import_parquet(tmp_path / "g[1].parquet")
    assert [row[3] for row in stored(store)] == [3.0, 4.0]
    with pytest.raises(InvalidFile):
        store.import_parquet(tmp_path / "*.parquet")
    with pytest.raises(InvalidFile):
        store.import_parquet("https://example.org/a.parquet")


@pytest.mark.duckdb
def test_deeply_nested_columns_are_ignored(store: Store, tmp_path: Path) -> None:
    kind: Any = pa.int32()
    for _ in range(60):
        kind = pa.list_(pa.struct({"deeper": kind}))
    write(tmp_path / "deep.parquet", deep=pa.nulls(2, kind))
    assert store.import_parquet(tmp_path / "deep.parquet").stored == 2


def test_an_invalid_checksum_file_is_reported(store: Store, tmp_path: Path) -> None:
    write(tmp_path / "a.parquet")
    (tmp_path / "a.parquet.sha256").write_text("hello")
    with pytest.raises(InvalidFile, match=r"a\.parquet\.sha256 is not a SHA-256"):
        store.import_parquet(tmp_path / "a.parquet")


def test_a_file_that_changes_after_the_check_is_noticed(store: Store, tmp_path: Path) -> None:
    first, second = write(tmp_path / "1.parquet"), write(tmp_path / "2.parquet", sensor_id=["t", "t"])

    def change(_rows: int, _total: int) -> None:
        write(second, sensor_id=["u", "u", "u"])

    with pytest.raises(InvalidFile, match="changed during the import") as caught:
        store.import_parquet([first, second], progress=change)
    assert "this import stored 2 points" in caught.value.__notes__[0]
    assert {row[0] for row in stored(store)} == {"s"}
    assert isinstance(caught.value, HoldfastError)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux to tell the peak of memory")
def test_a_huge_manifest_does_not_fill_the_memory(tmp_path: Path, run_python: RunPython) -> None:
    (tmp_path / "manifest.json").write_text("[" + "[]," * 20_000_000 + "[]]")
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from repo import InvalidFile\n"
        "from repo.transfer.sources import sources_of\n"
        "try: sources_of([Path(sys.argv[1])])\n"
        "except InvalidFile as error: print('manifest.json is too large' in str(error))\n"
        "[peak] = [line.split()[1] for line in open('/proc/self/status') if line.startswith('VmHWM')]\n"
        "print(int(peak) // 1024)\n"
    )
    refused, peak_mb = run_python(script, tmp_path, fresh=True).stdout.split()
    assert refused == "True"
    assert int(peak_mb) < 200
