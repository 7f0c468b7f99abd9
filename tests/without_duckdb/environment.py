"""An environment in which DuckDB is really not installed: everything that this interpreter has, but for it.

    python -m tests.without_duckdb.environment FOLDER     makes it, and prints its interpreter

A virtual environment without pip, whose packages are links to those of this one. It takes a tenth of a second, and
needs no network.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import tempfile
import venv
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.starter import Starter

__all__ = ["make", "starting_there"]

LEFT_OUT = ("duckdb", "_duckdb", "duckdb_engine", "adbc_driver_duckdb")


def make(folder: Path) -> Path:
    """Create the environment in this folder, replacing an old one, and return its interpreter."""
    if folder.exists():
        if not (folder / "pyvenv.cfg").exists():
            raise FileExistsError(f"{folder} is there, and is no virtual environment")
        shutil.rmtree(folder)
    venv.EnvBuilder(with_pip=False, symlinks=True).create(folder)
    own = Path(sysconfig.get_path("purelib"))
    theirs = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    for entry in own.iterdir():
        name = entry.name.partition("-")[0].partition(".")[0]
        if name not in LEFT_OUT:
            (theirs / entry.name).symlink_to(entry)
    return folder / "bin" / "python"


@contextmanager
def starting_there(*, shared: str | None = None) -> Iterator[Starter]:
    """Start processes in such an environment, through a server of its own, or one that another process started."""
    if shared is not None:
        yield Starter(shared=shared)
        return
    with (
        tempfile.TemporaryDirectory(prefix="without-duckdb-") as home,
        Starter(make(Path(home, "environment"))) as ready,
    ):
        yield ready


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
