"""An environment in which DuckDB is really not installed: everything that this interpreter has, but for it.

    python -m tests.without_duckdb.environment FOLDER     makes it, and prints its interpreter

A virtual environment without pip, whose packages are links to those of this one. It takes a tenth of a second, and
needs no network.
"""

from __future__ import annotations

import shutil
import sys
import sysconfig
import venv
from pathlib import Path

__all__ = ["make"]

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


if __name__ == "__main__":
    print(make(Path(sys.argv[1])))
