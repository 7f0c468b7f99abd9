"""The fork server: a process that has imported the library and opened no file, and forks a child for each request.

A starter forks it, so it has everything imported; a child costs milliseconds instead of a second. Forking is safe, with
one thread and no open file. Unlike the starter, it reaps a child only when it is asked to, so no process id is used
again while a test may still kill it. Manages processes and their pipes; knows nothing of what they do.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import os
import pickle
import select
import signal
import socket
import sys
import time
import traceback
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from tests.faults.child import Census, take_census
from tests.starter import Process, Starter, spent_us_of, without_pandas

__all__ = ["Child", "ForkServer"]


class Child:
    """A forked process, and what it has written to its pipe."""

    def __init__(self, pid: int, pipe: int, errors: Path, control: socket.socket) -> None:
        self.pid = pid
        self.errors = errors
        self.lines: list[str] = []
        self._pipe = pipe
        self._control = control
        self._rest = b""
        self._ended = False

    def wait_for(self, *words: str, timeout_s: float) -> str | None:
        """Read until a new line begins with one of `words`, and return it; None at the end or after the timeout."""
        deadline = time.monotonic() + timeout_s
        seen = len(self.lines)
        while True:
            for line in self.lines[seen:]:
                if line.startswith(words):
                    return line
            seen = len(self.lines)
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([self._pipe], [], [], left_s)[0] or not self._read():
                return None

    def kill(self) -> int:
        """SIGKILL it, read its remaining output, and return its exit code (-9: it was still alive)."""
        if not self._ended:
            # Its pid cannot have been reused, because the fork server has not reaped it yet.
            os.kill(self.pid, signal.SIGKILL)
        return self.end()

    def end(self) -> int:
        """Read to the end of its pipe, reap it, and return its exit code."""
        while self._read():
            pass
        os.close(self._pipe)
        self._ended = True
        self._control.sendall(b"reap %d" % self.pid)
        code, spent_us = map(int, self._control.recv(64).split())
        Process.spent_us += spent_us
        return code

    def read_all(self, timeout_s: float) -> bytes:
        """Return its output until it ends; kills it after `timeout_s`."""
        deadline = time.monotonic() + timeout_s
        answer = b""
        while select.select([self._pipe], [], [], max(0.0, deadline - time.monotonic()))[0]:
            piece = os.read(self._pipe, 1 << 20)
            if not piece:
                break
            answer += piece
        else:
            os.kill(self.pid, signal.SIGKILL)
        self.end()
        return answer

    def _read(self) -> bool:
        piece = os.read(self._pipe, 1 << 16)
        *whole, self._rest = (self._rest + piece).split(b"\n")
        self.lines += [line.decode() for line in whole]
        return bool(piece)


class ForkServer:
    """The side of the parent. Not thread-safe."""

    def __init__(self, starter: Starter) -> None:
        self._control, theirs = socket.socketpair()
        with theirs:
            self._process = starter.start(["-m", "tests.faults.fork_server"], streams=(theirs.fileno(), 1, 2))

    def start(self, asked: Any, request: Path) -> Child:
        """Fork a child that takes a census, or else runs what is `asked`; `request` is the file for the request.

        Its stderr is next to that file.
        """
        request.write_bytes(pickle.dumps(asked))
        ours, theirs = os.pipe()
        socket.send_fds(self._control, [os.fsencode(request)], [theirs])
        os.close(theirs)
        return Child(int(self._control.recv(64)), ours, request.with_suffix(".stderr"), self._control)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._control.close()
        counted_us = Process.spent_us
        self._process.wait()
        Process.spent_us = counted_us  # its children were counted when they ended


def _serve() -> None:
    """Answer the other end of stdin, until it is closed."""
    control = socket.socket(fileno=os.dup(0))
    with open(os.devnull, "rb") as nothing:
        os.dup2(nothing.fileno(), 0)
    without_pandas()
    children: set[int] = set()
    while True:
        message, pipes, _, _ = socket.recv_fds(control, 4096, 1)
        if not message:
            for child in children:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(child, signal.SIGKILL)
            return
        if message.startswith(b"reap "):
            _, status, usage = os.wait4(child := int(message[5:]), 0)
            children.discard(child)
            control.sendall(b"%d %d" % (os.waitstatus_to_exitcode(status), spent_us_of(usage)))
            continue
        child = os.fork()
        if child == 0:
            control.close()
            _live(Path(os.fsdecode(message)), pipes[0])
        children.add(child)
        os.close(pipes[0])
        control.sendall(b"%d" % child)


def _live(request: Path, pipe: int) -> None:
    """Run a forked process from start to end."""
    os.dup2(os.open(request.with_suffix(".stderr"), os.O_WRONLY | os.O_CREAT | os.O_APPEND), 2)
    faulthandler.enable()
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="%(levelname)s %(name)s %(message)s")
    try:
        asked = pickle.loads(request.read_bytes())
        if isinstance(asked, Census):
            answer = pickle.dumps(take_census(asked))
            while answer:
                answer = answer[os.write(pipe, answer) :]
        else:
            asked.live(lambda line: _say(pipe, line))
    except BaseException as error:  # noqa: BLE001  the parent reads it in the file
        traceback.print_exc()
        if "asked" in locals() and not isinstance(asked, Census):
            _say(pipe, f"ERROR main: {error!r}".replace("\n", " ")[:1000])
        os._exit(5)
    os._exit(0)


def _say(pipe: int, line: str) -> None:
    os.write(pipe, line.encode() + b"\n")  # shorter than PIPE_BUF, so it is written atomically


if __name__ == "__main__":
    _serve()
