"""Builds the shim that slows fsync down. Owns the compiler call, never what is measured under it."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

__all__ = ["environment"]


def environment(scratch: Path, delay_ms: float) -> dict[str, str] | str:
    """Return the variables that slow a child's fsync by `delay_ms`, or why that cannot be done here."""
    if sys.platform != "linux":
        return "the fsync shim is for Linux"
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if compiler is None:
        return "no C compiler here, so fsync cannot be slowed"
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
