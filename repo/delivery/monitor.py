"""The connection monitor: whether any of some hosts accepts a TCP connection. Informs callbacks, and decides nothing.

Deliveries do not depend on it: a sink is online if deliveries to it succeed, and `store.status()` shows that. Programs
use the monitor to show the state of the link, or to start work that needs it.
"""

from __future__ import annotations

import logging
import socket
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any
from urllib.parse import urlsplit

from repo.compat.environment import filled_from_environment, from_environment
from repo.errors import InvalidSettings, counted
from repo.inputs.arguments import check_function, check_seconds, check_text, shown

__all__ = ["ConnectionMonitor"]

log = logging.getLogger("holdfast.monitor")

_LONGEST_S = 1e6
"""Python's sockets and events do not accept longer timeouts."""

_PORTS = {"http": 80, "https": 443, "mqtt": 1883, "mqtts": 8883, "kafka": 9092, "postgresql": 5432, "": 80}

Callback = Callable[[bool], object]


def listed(text: str) -> list[str]:
    """Return the parts of a comma-separated list."""
    return [part for part in (part.strip() for part in text.split(",")) if part]


class ConnectionMonitor:
    """Watches the link by opening TCP connections to `check_hosts` ("host:port", port 80 if missing) and `check_urls`.

    The link is online if any of them accepts a connection within `timeout` seconds; nothing is sent. It counts as
    online until the first check. Without hosts and URLs, `KAFKA_BOOTSTRAP_SERVERS` names the hosts. Arguments that are
    omitted come from `CONNECTION_CHECK_INTERVAL`, `CONNECTION_CHECK_TIMEOUT`, `CONNECTION_CHECK_HOSTS` and
    `CONNECTION_CHECK_URLS`. With `CONNECTION_MONITOR_ENABLED=false`, `start_monitoring` does nothing.

    Raises `InvalidSettings` for an invalid argument or variable, or if there is nothing to check. Thread-safe.
    """

    @filled_from_environment(
        {
            "check_interval": ("CONNECTION_CHECK_INTERVAL", float),
            "timeout": ("CONNECTION_CHECK_TIMEOUT", float),
            "check_urls": ("CONNECTION_CHECK_URLS", listed),
            "check_hosts": ("CONNECTION_CHECK_HOSTS", listed),
        }
    )
    def __init__(
        self,
        check_interval: float = 5,
        timeout: float = 3,
        check_urls: Sequence[str] | None = None,
        check_hosts: Sequence[str] | None = None,
    ) -> None:
        self._interval_s = min(
            check_seconds(check_interval, "check_interval", error=InvalidSettings), _LONGEST_S
        )
        self._timeout_s = min(check_seconds(timeout, "timeout", error=InvalidSettings), _LONGEST_S)
        if not (self._interval_s and self._timeout_s):
            raise InvalidSettings("check_interval and timeout must be above 0")
        if not check_urls and not check_hosts:
            check_hosts = from_environment("KAFKA_BOOTSTRAP_SERVERS", listed)
        self._targets = [
            *(_target(host, "check_hosts", f"//{host}") for host in _texts(check_hosts, "check_hosts")),
            *(_target(url, "check_urls", url) for url in _texts(check_urls, "check_urls")),
        ]
        if not self._targets:
            raise InvalidSettings(
                'there is nothing to check: pass check_hosts=["host:port"] or check_urls, or set CONNECTION_CHECK_HOSTS'
            )
        enabled = from_environment("CONNECTION_MONITOR_ENABLED", bool)
        self._enabled = True if enabled is None else enabled
        self._lock = threading.Lock()
        self._callbacks: list[Callback] = []
        self._online = True
        self._failures = 0
        self._checked_s: float | None = None
        self._succeeded_s: float | None = None
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None

    @property
    def is_online(self) -> bool:
        """Whether the last check reached a target; True before the first one."""
        return self._online

    def add_callback(self, callback: Callback) -> None:
        """Call `callback(is_online)` after each change, in the thread of the check, with no lock held.

        An error that it raises is logged; the other callbacks and the monitoring continue.
        """
        check_function(callback, "callback", error=InvalidSettings)
        with self._lock:
            self._callbacks.append(callback)

    def remove_callback(self, callback: Callback) -> None:
        """Remove a callback; nothing happens if it was not added."""
        with self._lock:
            self._callbacks = [known for known in self._callbacks if known != callback]

    def check_connection(self) -> bool:
        """Check now, and return whether any target accepts a connection. Takes at most `timeout` seconds per target.

        Resolving a host name may take longer; the operating system limits it.
        """
        reached = any(map(self._reaches, self._targets))
        now_s = time.time()
        with self._lock:
            changed = reached != self._online
            self._online, self._checked_s = reached, now_s
            self._failures = 0 if reached else self._failures + 1
            if reached:
                self._succeeded_s = now_s
            callbacks = list(self._callbacks) if changed else []
        if changed:
            log.info("the link is %s", "online" if reached else "offline: no target accepts a connection")
        for callback in callbacks:
            try:
                callback(reached)
            except Exception:  # the caller's own code, which may raise anything; the monitoring must continue
                log.exception("a callback of the connection monitor failed")
        return reached

    def start_monitoring(self) -> None:
        """Check every `check_interval` seconds in a thread of its own, the first time at once. Safe to call again."""
        if not self._enabled:
            log.info("the connection monitor is off: CONNECTION_MONITOR_ENABLED is false")
            return
        with self._lock:
            if self._thread is not None and self._thread.is_alive():
                return
            stop = self._stop = threading.Event()
            self._thread = threading.Thread(
                target=self._run, args=(stop,), name="holdfast-monitor", daemon=True
            )
            self._thread.start()

    def stop_monitoring(self) -> None:
        """Stop the thread, and wait until it ends: at most one check. Safe to call again, and from a callback."""
        with self._lock:
            stop, thread = self._stop, self._thread
            self._stop = self._thread = None
        if stop is not None and thread is not None:
            stop.set()
            if thread is not threading.current_thread():
                thread.join()

    def get_status(self) -> dict[str, Any]:
        """Return `is_online`, `last_check_time`, `last_success_time`, `consecutive_failures` and `check_interval`.

        Times are Unix seconds, None before the first one.
        """
        with self._lock:
            return {
                "is_online": self._online,
                "last_check_time": self._checked_s,
                "last_success_time": self._succeeded_s,
                "consecutive_failures": self._failures,
                "check_interval": self._interval_s,
            }

    def __repr__(self) -> str:
        state = "online" if self._online else "offline"
        return f"<ConnectionMonitor of {counted(len(self._targets), 'target')}: {state}>"

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            self.check_connection()
            stop.wait(self._interval_s)

    def _reaches(self, target: tuple[str, int]) -> bool:
        try:
            with socket.create_connection(target, timeout=self._timeout_s):
                return True
        except (OSError, UnicodeError) as error:  # UnicodeError: a host name that IDNA cannot encode
            log.debug("%s:%d does not accept a connection: %s", *target, error)
            return False


def _texts(value: Sequence[str] | None, name: str) -> list[str]:
    if value is None:
        return []
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise InvalidSettings(f"{name} = {shown(value)}: a list of texts is expected")
    return [check_text(text, name, error=InvalidSettings) for text in value]


def _target(text: str, name: str, url: str) -> tuple[str, int]:
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise InvalidSettings(f"{name}: {text!r} is not valid: {error}") from error
    default = _PORTS.get(parts.scheme)
    if not host or (port is None and default is None):
        raise InvalidSettings(
            f'{name}: {text!r} is not valid; write "host:port" or a URL such as https://host'
        )
    return host, port or default or 0
