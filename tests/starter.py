"""Processes of Python that cost milliseconds to start: a server that has imported the library forks them.

    python tests/starter.py SOCKET ROOT

A child has its own arguments, folder, environment and standard streams, runs what `python ARGUMENTS` would run, joins
its threads and exits. What differs is that the library is imported already: where a test is about the import or about
the interpreter, it starts a process itself. The server has one thread and no open store, so forking is safe.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import os
import pkgutil
import resource
import runpy
import select
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import types
from collections.abc import Mapping, Sequence
from importlib.abc import MetaPathFinder
from pathlib import Path
from typing import IO, Any, ClassVar, Self

__all__ = ["PipedProcess", "Process", "Starter", "spent_us_of", "without_pandas"]

ROOT = Path(__file__).resolve().parents[1]
TIMEOUT_S = 300.0
MOST_OF_A_PLACE = 80
"""The address of a socket has about 100 characters, and a folder and a name follow."""
LEFT_OUT = ("repo.demo", "repo.migrations", "repo.formats.files.parquet_pyarrow")
"""PyArrow and NumPy start threads when they are imported."""

FIRST_STREAMS = (sys.stdout, sys.stderr)
"""Those of the server: modules that were imported there, as Alembic, may write to them."""

LOADED = ("duckdb", "duckdb_engine", "alembic.command", "sqlalchemy.dialects.sqlite")

CLIENT = """#!/bin/sh
'''exec' "{python}" -IS "$0" "$@"
' '''
import _socket, array, os, sys
server = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
server.connect({address!r})
words = [os.getcwd(), str(len(sys.argv)), {command!r}, *sys.argv[1:], *(f"{{k}}={{v}}" for k, v in os.environ.items())]
asked = os.fsencode("\\0".join(words))
streams = array.array("i", (0, 1, 2)).tobytes()
server.sendmsg([b"%12d" % len(asked)], [(_socket.SOL_SOCKET, _socket.SCM_RIGHTS, streams)])
server.sendall(asked)
said = b""
while piece := server.recv(64):
    said += piece
code = int(said.split()[1])
sys.exit(code if code >= 0 else 128 - code)
"""
"""A program that runs a command in a forked process; as an executable file, for a shell.

The first lines are for both the shell and Python: the path of an interpreter in `#!` may hold no blank.
"""


def spent_us_of(usage: resource.struct_rusage) -> int:
    """Return the CPU time of a process that has ended, or of several."""
    return round((usage.ru_utime + usage.ru_stime) * 1e6)


class _NoPandas(MetaPathFinder):
    def find_spec(self, name: str, *_: object) -> None:
        if name == "pandas":
            raise ModuleNotFoundError("not needed here", name=name)


def without_pandas() -> None:
    """Have this process and its children find no pandas: PyArrow imports it for its first array, which takes 0.3 s."""
    sys.meta_path.insert(0, _NoPandas())


class Process:
    """A forked process, with what is left open of its streams."""

    spent_us: ClassVar[int] = 0
    """The CPU time of all that have ended and were waited for, with their own children."""

    def __init__(self, server: socket.socket) -> None:
        self._server = server
        self._said = b""
        self.pid = int(self._line(0))

    def wait(self, timeout: float = TIMEOUT_S) -> int:
        """Wait for its end, and return its exit code; -9 if it was killed. Raises `TimeoutError`."""
        self._server.settimeout(timeout)
        code, spent_us = map(int, self._line(1).split())
        Process.spent_us += spent_us
        self._server.close()
        return code

    def kill(self, number: int = signal.SIGKILL) -> None:
        """Send it a signal, unless it has ended by itself."""
        if not self.has_ended:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self.pid, number)

    @property
    def has_ended(self) -> bool:
        """Whether there is nothing to wait for."""
        return bool(self._said.count(b"\n") > 1 or select.select([self._server], [], [], 0)[0])

    def _line(self, number: int) -> bytes:
        while self._said.count(b"\n") <= number:
            piece = self._server.recv(64)
            if not piece:
                raise ConnectionError("the server of processes is gone")
            self._said += piece
        return self._said.split(b"\n")[number]


class PipedProcess:
    """A forked process with pipes to its streams, used as a `subprocess.Popen` with `text=True`."""

    def __init__(self, starter: Starter, arguments: Sequence[object], cwd: Path) -> None:
        pipes = [os.pipe() for _ in range(3)]
        ends = [pipes[0][0], pipes[1][1], pipes[2][1]]
        self._process = starter.start(arguments, cwd=cwd, streams=ends)
        for end in ends:
            os.close(end)
        self.pid = self._process.pid
        self.returncode: int | None = None
        self.stdin = os.fdopen(pipes[0][1], "w")
        self.stdout = os.fdopen(pipes[1][0])
        self.stderr = os.fdopen(pipes[2][0])

    def poll(self) -> int | None:
        """Return its exit code, or None while it runs."""
        if self.returncode is None and self._process.has_ended:
            self.wait()
        return self.returncode

    def wait(self, timeout: float = TIMEOUT_S) -> int:
        """Wait for its end, and return its exit code; raises `TimeoutError`."""
        if self.returncode is None:
            self.returncode = self._process.wait(timeout)
        return self.returncode

    def communicate(self, given: str = "", timeout: float = TIMEOUT_S) -> tuple[str, str]:
        """Write to its stdin, wait for its end, and return the rest of what it wrote.

        If it does not end in time, it is killed, and a `TimeoutError` says what it wrote.
        """
        with contextlib.suppress(BrokenPipeError):  # it has ended by itself
            self.stdin.write(given)
            self.stdin.flush()
        with contextlib.suppress(BrokenPipeError):
            self.stdin.close()
        said = {}
        readers = [
            threading.Thread(target=lambda stream=stream: said.update({stream: stream.read()}), daemon=True)
            for stream in (self.stdout, self.stderr)
            if not stream.closed
        ]
        for reader in readers:
            reader.start()
        try:
            self.wait(timeout)
        except TimeoutError as late:
            self.kill()
            raise TimeoutError("\n".join(self._joined(readers, said, 10))) from late
        return self._joined(readers, said, timeout)

    def _joined(
        self, readers: Sequence[threading.Thread], said: Mapping[IO[str], str], timeout: float
    ) -> tuple[str, str]:
        for reader in readers:
            reader.join(timeout)  # a child of its own may keep the pipes open
        return said.get(self.stdout, ""), said.get(self.stderr, "")

    def send_signal(self, number: int) -> None:
        """Send it a signal, unless it has ended."""
        if self.poll() is None:
            self._process.kill(number)

    def kill(self) -> None:
        """Send it SIGKILL, unless it has ended."""
        self.send_signal(signal.SIGKILL)

    def close(self) -> None:
        """Kill it if it runs, wait for its end, and close the pipes."""
        self.kill()
        self.wait()
        for stream in (self.stdin, self.stdout, self.stderr):
            with contextlib.suppress(BrokenPipeError):
                stream.close()


class Starter:
    """The tests' side: starts the server, and asks it for processes.

    `root` is the checkout whose modules they have, as these are when it starts. With `shared`, the address of a server
    that another process started, it uses that one.
    """

    def __init__(
        self, python: str | Path = sys.executable, root: Path = ROOT, *, shared: str | None = None
    ) -> None:
        self._server: subprocess.Popen[bytes] | None = None
        if shared is not None:
            self.address = shared
            return
        place = tempfile.gettempdir()
        if len(place) > MOST_OF_A_PLACE:
            place = "/tmp"
        self._home = Path(tempfile.mkdtemp(prefix="starter-", dir=place))
        self.address = str(self._home / "s")
        self._server = subprocess.Popen(
            [str(python), "-W", "error", str(Path(__file__).resolve()), self.address, str(root)],
            cwd=root,
            env=os.environ | {"PYTHONPATH": str(root)},
            stdin=subprocess.PIPE,
        )

    def _connected(self) -> socket.socket:
        """Connect to the server, which may still be importing."""
        deadline = time.monotonic() + TIMEOUT_S
        while True:
            server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            server.settimeout(TIMEOUT_S)
            try:
                server.connect(self.address)
            except (FileNotFoundError, ConnectionRefusedError, BlockingIOError):  # the last: many ask at once
                server.close()
                assert self._server is None or self._server.poll() is None, "the server has ended"
                assert time.monotonic() < deadline, "the server does not answer"
                time.sleep(0.01)
            else:
                return server

    def start(
        self,
        arguments: Sequence[object],
        *,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        streams: Sequence[int | IO[Any]] = (),
    ) -> Process:
        """Start what `python ARGUMENTS` is; `streams` are its stdin, stdout and stderr: where left out, nothing."""
        with open(os.devnull, "r+b") as null:
            given = [*streams, *[null] * 3][:3]
            files = [each if isinstance(each, int) else each.fileno() for each in given]
            server = self._connected()
            words = [str(cwd), str(len(arguments)), *map(str, arguments)]
            words += [f"{name}={value}" for name, value in (os.environ if env is None else env).items()]
            asked = os.fsencode("\0".join(words))
            socket.send_fds(server, [b"%12d" % len(asked)], files)
            server.sendall(asked)
            return Process(server)

    def run(
        self,
        arguments: Sequence[object],
        *,
        cwd: Path = ROOT,
        env: Mapping[str, str] | None = None,
        stdin: str = "",
    ) -> subprocess.CompletedProcess[str]:
        """Run it to its end, as `subprocess.run` does with `text=True` and `capture_output=True`."""
        with (
            tempfile.TemporaryFile() as given,
            tempfile.TemporaryFile() as out,
            tempfile.TemporaryFile() as err,
        ):
            given.write(stdin.encode())
            given.seek(0)
            code = self.start(arguments, cwd=cwd, env=env, streams=(given, out, err)).wait()
            said = []
            for file in (out, err):
                file.seek(0)
                said.append(file.read().decode().replace("\r\n", "\n"))
        return subprocess.CompletedProcess([*map(str, arguments)], code, *said)

    def open(self, arguments: Sequence[object], *, cwd: Path = ROOT) -> PipedProcess:
        """Start it with pipes to its streams."""
        return PipedProcess(self, arguments, cwd)

    def program(self, path: Path, command: str | Path) -> None:
        """Make an executable file that runs a script of Python, by its path, in a forked process."""
        self._connected().close()
        path.write_text(CLIENT.format(python=sys.executable, address=self.address, command=str(command)))
        path.chmod(0o755)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._server is not None:
            assert self._server.stdin is not None
            self._server.stdin.close()
            self._server.wait(TIMEOUT_S)
            shutil.rmtree(self._home)


def warm_up() -> None:
    """Use a store on each engine, and close it, so that forked processes have every statement compiled.

    Leaves one thread and no open file, so that forking is safe.
    """
    from repo import Settings, Store
    from repo.engines.registry import ENGINES

    with tempfile.TemporaryDirectory() as home:
        for name, engine in ENGINES.items():
            if engine.why_missing() is None:
                settings = Settings(background=False, engine=name)  # type: ignore[arg-type]
                with Store(Path(home, name), settings) as store:
                    for value in (1.0, 2.0):
                        store.points.insert("a", "m", value, timestamp=1)
                        assert [row["value"] for row in store.points.range("a", "m")] == [value]
                    store.points.delete("a", "m")
                    store.checkpoint()
    threads = Path("/proc/self/task")
    deadline = time.monotonic() + TIMEOUT_S
    while threads.exists() and len([*threads.iterdir()]) > 1:  # one that was joined is listed a moment longer
        assert time.monotonic() < deadline, "a process with threads cannot be forked safely"
        time.sleep(0.001)
    gc.collect()
    gc.freeze()  # what the children share stays shared


# --- the server -----------------------------------------------------------------------------------------


def _serve(address: str, root: str) -> list[str] | None:
    """Answer until stdin ends; in a forked process, return its arguments."""
    gc.disable()  # what is imported stays
    own = (
        found.name
        for found in pkgutil.walk_packages([str(Path(root) / "repo")], "repo.")
        if not found.name.startswith(LEFT_OUT)
    )
    for name in (*LOADED, *own):
        with contextlib.suppress(ModuleNotFoundError):  # where there is no DuckDB
            importlib.import_module(name)
    if Path(root) == ROOT:  # the models of a copy may be ahead of its migrations
        warm_up()
    gc.enable()
    gc.set_threshold(30_000, 10, 100)  # as in the processes of pytest
    wake, woken = os.pipe()
    os.set_blocking(woken, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(woken)
    asking: dict[int, socket.socket] = {}
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(address)
        listener.listen(16)
        while True:
            ready, _, _ = select.select([listener.fileno(), wake, 0], [], [])
            if 0 in ready:
                for pid in asking:
                    os.kill(pid, signal.SIGKILL)
                return None
            if wake in ready:
                os.read(wake, 4096)
                for pid in [*asking]:
                    ended, status, usage = os.wait4(pid, os.WNOHANG)
                    if ended:
                        _answer(asking[pid], os.waitstatus_to_exitcode(status), spent_us_of(usage))
                        asking.pop(pid).close()
            if listener.fileno() in ready:
                client, _ = listener.accept()
                head, streams, _, _ = socket.recv_fds(client, 12, 3)
                asked = _asked(client, head)
                if asked is None:
                    client.close()
                    for stream in streams:
                        os.close(stream)
                    continue
                pid = os.fork()
                if pid == 0:
                    signal.set_wakeup_fd(-1)
                    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
                    for other in (client, *asking.values()):
                        other.close()
                    for pipe in (wake, woken):
                        os.close(pipe)
                    return _become(os.fsdecode(asked).split("\0"), streams)
                for stream in streams:
                    os.close(stream)
                _answer(client, pid)
                asking[pid] = client


def _asked(client: socket.socket, head: bytes) -> bytes | None:
    """Return what a client asks for; None if it only wanted to know whether the server is ready, or was killed."""
    asked = b""
    while len(head) == 12 and len(asked) < int(head):
        piece = client.recv(int(head) - len(asked))
        if not piece:
            return None
        asked += piece
    return asked or None


def _answer(client: socket.socket, *numbers: int) -> None:
    with contextlib.suppress(OSError):  # whoever asked is gone; the process is not
        client.sendall(b"%s\n" % b" ".join(b"%d" % number for number in numbers))


def _become(asked: list[str], streams: list[int]) -> list[str]:
    """Take on the folder, the environment and the streams of a new process, and return its arguments."""
    cwd, count, *words = asked
    for number, stream in enumerate(streams):
        os.dup2(stream, number)
        os.close(stream)
    sys.stdin = sys.__stdin__ = open(0, encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stdout = sys.__stdout__ = open(1, "w", encoding="utf-8", closefd=False)  # type: ignore[misc]  # noqa: SIM115
    sys.stderr = sys.__stderr__ = open(  # type: ignore[misc]  # noqa: SIM115
        2, "w", 1, encoding="utf-8", errors="backslashreplace", closefd=False
    )
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(cwd)
    os.environ.clear()
    for word in words[int(count) :]:
        name, _, value = word.partition("=")
        os.environ[name] = value
    return words[: int(count)]


def _run(arguments: list[str]) -> None:
    """Do what the interpreter does with its arguments."""
    first, *rest = arguments
    main = sys.modules["__main__"] = types.ModuleType("__main__")
    if first == "-c":
        sys.argv, sys.path[0] = ["-c", *rest[1:]], ""
        exec(compile(rest[0], "<string>", "exec"), main.__dict__)
    elif first == "-m":
        sys.argv, sys.path[0] = ["-m", *rest[1:]], os.getcwd()
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        sys.argv = arguments
        runpy.run_path(first, run_name="__main__")


def _end(arguments: list[str]) -> None:
    """Run it, and end as an interpreter does, but for taking the imported modules apart, which takes longest."""
    code: object = 0
    try:
        _run(arguments)
    except SystemExit as end:
        code = end.code or 0
    except BaseException:  # noqa: BLE001  as an interpreter does
        traceback.print_exc()
        code = 1
    if not isinstance(code, int):
        print(code, file=sys.stderr)
        code = 1
    threading._shutdown()  # type: ignore[attr-defined]
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr, *FIRST_STREAMS):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    sys.path[0] = sys.argv[2]
    given = _serve(sys.argv[1], sys.argv[2])
    if given is not None:
        _end(given)
