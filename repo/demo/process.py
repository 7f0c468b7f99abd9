"""Processes that talk: a line of JSON is a message. Owns starting, hearing and ending them, not what they say.

A child hears orders on its standard input and says what happened on its standard output. When its parent is
gone, however it ended, the input closes and the child ends at once.
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
    """Tell the parent what happened."""
    sys.stdout.write(json.dumps({"event": event, **facts}) + "\n")
    sys.stdout.flush()


def obey(orders: dict[str, Callable[[], None]]) -> None:
    """Carry out orders from the parent in a thread of their own, and end the process with it."""

    def listen() -> None:
        # Unbuffered: a thread that waits in sys.stdin itself holds its lock, and the exit could not have it.
        with open(0, "rb", buffering=0, closefd=False) as stdin:
            for line in stdin:
                orders[line.decode().strip()]()
        os._exit(3)

    threading.Thread(target=listen, name="holdfast-demo-orders", daemon=True).start()


# --- in the parent ---------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Message:
    """What a child said, and when it was heard (monotonic seconds). Its last event is `ended`."""

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
        # -P: the folder in which the demo is run must not lend the child its own modules.
        command = [sys.executable, "-P", "-m", f"repo.demo.{module}", *arguments]
        search = os.pathsep.join(filter(None, (str(_PACKAGE_HOME), os.environ.get("PYTHONPATH"))))
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(  # noqa: S603  our own modules, no shell
                command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                env={**os.environ, "PYTHONPATH": search, "PYTHONUTF8": "1"},
                start_new_session=True,  # Ctrl-C is the parent's to handle
            )
        self._thread = threading.Thread(target=self._listen, name=f"holdfast-demo-{name}", daemon=True)
        self._thread.start()

    def order(self, order: str) -> None:
        """Send an order; a child that is gone is found out by whoever waits for its answer."""
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{order}\n".encode())
            self._process.stdin.flush()

    def expect_end(self) -> None:
        """From now on its end is no failure."""
        self._is_expected_to_end = True

    def kill(self) -> bool:
        """SIGKILL it, and return when it is dead and all that it said is in the inbox. True: that killed it."""
        self._is_expected_to_end = True
        self._process.send_signal(signal.SIGKILL)
        return self.wait() == -signal.SIGKILL

    def wait(self) -> int:
        """Wait for its end, and until all that it said is in the inbox; returns the exit code."""
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
        """Raise `DemoFailed` with its last words, for a child that ended unasked."""
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
                    break  # killed in the middle of a word: it was not said
                facts = json.loads(line)
                self._inbox.put(Message(self, time.monotonic(), facts.pop("event"), facts))
        self._inbox.put(Message(self, time.monotonic(), "ended"))
