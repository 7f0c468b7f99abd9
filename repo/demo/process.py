"""Processes that exchange messages, one line of JSON each. Starts them, receives from them and ends them.

A child reads orders from its standard input and reports events on its standard output. When its parent ends for any
reason, the input closes and the child exits at once.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from repo.errors import DemoFailed

__all__ = ["Child", "Inbox", "Message", "announce", "obey"]

_PACKAGE_HOME = Path(__file__).resolve().parents[2]


# --- in the child ----------------------------------------------------------------------------------------


def announce(event: str, **facts: Any) -> None:
    """Report an event to the parent."""
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def obey(orders: dict[str, Callable[[], None]]) -> None:
    """Execute orders from the parent in a separate thread, and exit when the parent does."""

    def listen() -> None:
        # Unbuffered: a thread that waits in sys.stdin holds its lock, which the exit needs.
        with open(0, "rb", buffering=0, closefd=False) as stdin:
            for line in stdin:
                orders[line.decode().strip()]()
        os._exit(3)

    threading.Thread(target=listen, name="holdfast-demo-orders", daemon=True).start()


# --- in the parent ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """An event of a child, and when it was received (monotonic seconds). The last event is `ended`."""

    child: Child
    at_s: float
    event: str
    facts: dict[str, Any] = field(default_factory=dict)


Inbox = queue.SimpleQueue[Message]


class Child:
    """A process of this package, `python -m repo.demo.MODULE`, whose messages go to an inbox."""

    def __init__(self, name: str, module: str, arguments: list[str], inbox: Inbox, folder: Path) -> None:
        self.name: Final = name
        self._log = folder / f"{name.replace(' ', '-')}.log"
        self._inbox = inbox
        self._is_expected_to_end = False
        # -P: the child must not import modules from the current folder.
        command = [sys.executable, "-P", "-m", f"repo.demo.{module}", *arguments]
        search = os.pathsep.join(filter(None, (str(_PACKAGE_HOME), os.environ.get("PYTHONPATH"))))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  our own modules, no shell
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": search, "PYTHONUTF8": "1"},
                start_new_session=True,  # the parent handles Ctrl-C
            )
        self._thread = threading.Thread(target=self._listen, name=f"holdfast-demo-{name}", daemon=True)
        self._thread.start()

    def order(self, order: str) -> None:
        """Send an order. If the child has ended, the caller that waits for its answer notices."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{order}\n".encode())
            self._process.stdin.flush()

    def expect_end(self) -> None:
        """From now on its end is expected."""
        self._is_expected_to_end = True

    def kill(self) -> bool:
        """Send SIGKILL, and wait until it is dead and all its events are in the inbox. True if that killed it."""
        self._is_expected_to_end = True
        self._process.send_signal(signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """Wait until it has ended and all its events are in the inbox; returns the exit code."""
        self._is_expected_to_end = True
        code = self._process.wait()
        self._thread.join()
        return code

    def stop(self) -> None:
        """End it by closing its input, or by SIGKILL if that does not help. Safe to call again."""
        self._is_expected_to_end = True
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        try:
            self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._thread.join()

    def check(self) -> None:
        """Raise `DemoFailed`, with the end of its log, for a child that ended unexpectedly."""
        if not self._is_expected_to_end:
            words = self._log.read_text(errors="replace").strip().splitlines()[-3:]
            raise DemoFailed(
                f"the {self.name} ended by itself (exit code {self._process.wait()}): "
                + (" / ".join(words) or "it said nothing"),
                path=self._log,
            )

    def _listen(self) -> None:
        assert self._process.stdout is not None
        with self._process.stdout as stdout:
            for line in stdout:
                if not line.endswith(b"\n"):
                    break  # killed while writing the message, which does not count
                facts = json.loads(line)
                self._inbox.put(Message(self, time.monotonic(), facts.pop("event"), facts))
        self._inbox.put(Message(self, time.monotonic(), "ended"))
