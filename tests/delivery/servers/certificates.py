"""A certificate for loopback, signed by itself."""

from __future__ import annotations

import subprocess
from pathlib import Path
from typing import NamedTuple

import pytest

from tests.delivery.servers.process import program

__all__ = ["Certificates", "make_certificates"]


class Certificates(NamedTuple):
    """Files in PEM."""

    certificate: Path
    key: Path


def make_certificates(folder: Path) -> Certificates:
    """Make a certificate for 127.0.0.1; skips the test if openssl is missing or too old."""
    command = (
        f"{program('openssl', 'openssl')} req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 3650 "
        "-subj /CN=there -addext subjectAltName=IP:127.0.0.1 -keyout key.pem -out cert.pem"
    )
    done = subprocess.run(command.split(), cwd=folder, capture_output=True, check=False)
    if done.returncode:
        pytest.skip(f"openssl cannot make a certificate here: {done.stderr.decode(errors='replace')[-200:]}")
    return Certificates(folder / "cert.pem", folder / "key.pem")
