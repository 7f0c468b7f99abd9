"""A server of another project on loopback, as a child process that a test starts, freezes, kills and starts again."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

import pytest

from benchmarks.servers import binary
from tests.delivery.servers.install import why_missing

__all__ = ["Server", "closed_port", "free_port", "program"]

START_S = 300.0
"""The longest wait for a server to start or to end, on a busy machine."""


def program(name: str, server: str | None = None) -> str:
    """Return the path of a program of a server; skips the test, with what to install, if there is none."""
    path = binary(name)
    if path is None:
        pytest.skip(why_missing(server or name))
    return path


def free_port() -> int:
    """Return a port of loopback that nobody listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def closed_port() -> Iterator[int]:
    """A port of loopback that refuses connections, and that no other process gets, until the block ends."""
    with socket.socket() as reserved:
        reserved.bind(("127.0.0.1", 0))
        yield int(reserved.getsockname()[1])


class Server:
    """A server with its own folder, which keeps its data from one start to the next.

    `ready` returns whether it answers. Its output is in `folder/output`.
    """

    def __init__(self, folder: Path, command: Sequence[str], port: int, ready: Callable[[], bool]) -> None:
        self.folder = folder
        self.port = port
        self._command = command
        self._ready = ready
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it answers."""
        with (self.folder / "output").open("ab") as output:
            self._process = subprocess.Popen(
                self._command,
                cwd=self.folder,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
            )
        limit = time.monotonic() + START_S
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > limit:
                self.kill()
                said = (self.folder / "output").read_text(errors="replace")[-2000:]
                raise RuntimeError(f"{self._command[0]} does not start: {said}")
            time.sleep(0.02)

    def _answers(self) -> bool:
        with suppress(OSError):
            return self._ready()
        return False

    def kill(self) -> None:
        """End it as a power cut would, as far as its own process goes."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as its service manager would."""
        self._end(signal.SIGTERM)

    def restart(self) -> None:
        """Kill it and start it again, with the same data and port."""
        self.kill()
        self.start()

    def freeze(self) -> None:
        """Stop it from doing anything; connections to it stay open."""
        assert self._process is not None
        self._signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        """Let it continue."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: int) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _end(self, number: int) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(number)
            try:
                self._process.wait(START_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
