"""Builds the shim that slows fsync down. Owns only the call of the compiler."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["environment"]


def environment(scratch: Path, delay_ms: float) -> dict[str, str] | str:
    """Return the environment that slows a child's fsync by `delay_ms`, or why that is not possible here."""
    if sys.platform != "linux":
        return "the fsync shim needs Linux"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return "the fsync shim needs a C compiler"
    library = scratch / "slow_fsync.so"
    source = Path(__file__).with_suffix(".c")
    built = subprocess.run(
        [compiler, "-O2", "-shared", "-fPIC", "-o", str(library), str(source), "-ldl"],
        capture_output=True,
        text=True,
        check=False,
    )
    if built.returncode:
        return f"{compiler} failed: {built.stderr.strip()[:200]}"
    return {"LD_PRELOAD": str(library), "SLOW_FSYNC_MS": str(delay_ms)}
