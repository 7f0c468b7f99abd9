"""Servers for a comparison: started on loopback in a temporary folder, without privileges, and stopped afterwards."""

from __future__ import annotations

import http.client
import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from urllib.parse import urlencode

__all__ = ["Http", "Server", "binary", "free_port"]

_UNPRIVILEGED = ("postgres", "nobody")
_DEADLINE_S = 300.0


def binary(*names: str) -> str | None:
    """Return the path of the first of these programs that is installed, also where Debian hides servers."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    path = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/sbin", *map(str, folders)])
    return next((found for name in names if (found := shutil.which(name, path=path))), None)


def free_port() -> int:
    """Return a port of loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


class Server:
    """A server process and its folder. If the benchmark runs as root, the server runs as an unprivileged user."""

    def __init__(self, parent: Path) -> None:
        self.user = _unprivileged()
        parent.mkdir(parents=True, exist_ok=True)
        self.folder = Path(tempfile.mkdtemp(dir=parent, prefix="server-"))
        if self.user is not None:
            os.chown(self.folder, pwd.getpwnam(self.user).pw_uid, pwd.getpwnam(self.user).pw_gid)
        self._process: subprocess.Popen[bytes] | None = None

    def run(self, command: Sequence[str]) -> None:
        """Run a program of the server to its end."""
        done = subprocess.run(
            command,
            user=self.user,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            env=self._env,
        )
        if done.returncode:
            raise RuntimeError(f"{command[0]} failed: {done.stderr.strip()}")

    def start(self, command: Sequence[str], ready: Callable[[], object]) -> None:
        """Start the server, and call `ready` until it raises no OSError."""
        with (self.folder / "server.log").open("wb") as log:
            self._process = subprocess.Popen(
                command, user=self.user, cwd=self.folder, stdout=log, stderr=log, env=self._env
            )
        try:
            self._wait(command[0], self._process, ready)
        except BaseException:
            self.close()
            raise

    def _wait(self, program: str, process: subprocess.Popen[bytes], ready: Callable[[], object]) -> None:
        until = time.monotonic() + _DEADLINE_S
        while True:
            try:
                ready()
            except OSError as error:
                if process.poll() is not None or time.monotonic() > until:
                    text = (self.folder / "server.log").read_text(errors="replace")[-2000:]
                    raise RuntimeError(f"{program} does not answer: {text}") from error
                time.sleep(0.05)
            else:
                return

    def size_bytes(self) -> int:
        """Return the bytes of all files of the server, without its messages."""
        files = (path for path in self.folder.rglob("*") if path.name != "server.log" and path.is_file())
        return sum(file.stat().st_size for file in files)

    def stop(self, how: signal.Signals = signal.SIGTERM) -> None:
        """Stop the server; `start` starts it again."""
        if self._process is not None:
            self._process.send_signal(how)
            try:
                self._process.wait(_DEADLINE_S)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()

    def close(self) -> None:
        """Stop the server and remove its folder."""
        self.stop()
        shutil.rmtree(self.folder, ignore_errors=True)

    @property
    def _env(self) -> dict[str, str]:
        return {**os.environ, "HOME": str(self.folder), "LC_ALL": "C.UTF-8"}


class Http:
    """Requests to a server of loopback on one connection."""

    def __init__(self, port: int) -> None:
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=300)

    def get(self, path: str, parameters: Mapping[str, str] | None = None) -> bytes:
        """Return the body of the answer; raises `RuntimeError` for a status that is not 2xx."""
        return self._ask("GET", f"{path}?{urlencode(parameters)}" if parameters else path)

    def post(self, path: str, body: bytes) -> bytes:
        """Send a body and return that of the answer."""
        return self._ask("POST", path, body)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _ask(self, method: str, path: str, body: bytes | None = None) -> bytes:
        try:
            self._connection.request(method, path, body)
            answer = self._connection.getresponse()
            text = answer.read()
        except OSError:
            self._connection.close()  # or it would refuse the next request
            raise
        if answer.status // 100 != 2:
            raise RuntimeError(f"{method} {path}: {answer.status} {text[:500].decode(errors='replace')}")
        return text


def _unprivileged() -> str | None:
    """Return an unprivileged user to run servers as, if this process is root; PostgreSQL refuses to run as root."""
    if os.geteuid() != 0:
        return None
    users = {entry.pw_name for entry in pwd.getpwall()}
    return next((user for user in _UNPRIVILEGED if user in users), None)
