"""The receiver: takes batches of other stores over HTTP into a store, each exactly once; the server of holdfast-2.

One resource at any path. `POST` takes a batch; the packed points or the JSON of records are the body, and these headers
describe it: `Holdfast-Format: holdfast-2`, `Holdfast-Store`, `Holdfast-Epoch`, `Holdfast-Sink` (percent-encoded),
`Holdfast-Lane`, `Holdfast-First`, `Holdfast-Last`, `Holdfast-Token` (absent for the first batch), `Holdfast-Next`, and
`Holdfast-Sha256` of the body before compression. `GET` returns the position of the sink that the same headers name.

Every answer is a JSON object with `"format": "holdfast-2"`:

| answer | meaning |
|---|---|
| 200 `{"token": NEXT, "refused": [[ROW, REASON], ...], "repeat": BOOLEAN}` | all but the refused rows is durable |
| 400 `{"error": REASON}`, as all below | the request is not a batch of this format |
| 401, 403 | the bearer token is missing or unknown; it belongs to another store |
| 409 | the batch does not follow the last one: one of both stores is a copy, or was rolled back |
| 413, 415 | the body is too large; its compression is unknown |
| 500, 503 | nothing was stored; send it again |
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import json
import logging
import re
import ssl
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import unquote

from repo.core.changes import PositionChange
from repo.delivery.encodings.packed import FORMAT, unpack_points, unpack_records
from repo.delivery.http_server import Handler, HttpServer, Refused, ServerLimits
from repo.delivery.protocol import Lane
from repo.errors import HoldfastError, InvalidSettings, StoreBusy, StoreForked, StoreFull
from repo.inputs.arguments import check_count, check_path, check_seconds, check_text
from repo.store.receiving import Receiving, Taken
from repo.store.store import Store

__all__ = ["Receiver"]

log = logging.getLogger("holdfast.receiver")

_HEX = re.compile("[0-9a-f]{32}")
_SHA256 = re.compile("[0-9a-f]{64}")
_INTEGER = re.compile(r"-?\d{1,19}", re.ASCII)
_LONGEST_S = 1e6
_AT_A_TIME = 4
"""The batches that are unpacked and stored at a time, for the memory: the store has one writer anyway."""


class Receiver:
    """Serves one store on `host` and `port` (0: any free one) until `stop`. Its owner closes the store afterwards.

    `tokens` are the bearer tokens that senders may use. The first store that uses a token owns it. Without tokens, only
    an address of loopback is accepted. `certificate` and `key` are PEM files for TLS; without them a token can be read
    by anyone on the way. At most `connections` senders are connected at a time; others are asked to come back. A body
    has at most `body_bytes`, also after decompression, and a request must arrive within `timeout_s`, longer only for a
    long body. Raises `InvalidSettings`, also if it cannot listen on the address. Thread-safe.
    """

    def __init__(
        self,
        store: Store,
        host: str = "127.0.0.1",
        port: int = 0,
        *,
        tokens: Iterable[str] = (),
        certificate: str | Path | None = None,
        key: str | Path | None = None,
        connections: int = 64,
        body_bytes: int = 8_388_608,
        timeout_s: float = 30.0,
    ) -> None:
        host = check_text(host, "host", error=InvalidSettings)
        port = check_count(port, "port", 0, error=InvalidSettings)
        if port > 65_535:
            raise InvalidSettings(f"port = {port}: at most 65535")
        digests = _digests(tokens)
        if not digests and not _is_loopback(host):
            raise InvalidSettings(
                f"{host} can be reached from other machines, so a receiver there needs tokens; give it at least one, "
                "or listen on 127.0.0.1"
            )
        self._server = _Server(
            store.receiving,
            (host, port),
            digests,
            _context(certificate, key),
            ServerLimits(
                check_count(connections, "connections", error=InvalidSettings),
                check_count(body_bytes, "body_bytes", error=InvalidSettings),
                min(check_seconds(timeout_s, "timeout_s", 0.01, error=InvalidSettings), _LONGEST_S),
            ),
        )
        self._host = host
        self._scheme = "https" if certificate is not None else "http"
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    @property
    def url(self) -> str:
        """The URL for the sinks of other stores."""
        host = f"[{self._host}]" if ":" in self._host else self._host
        return f"{self._scheme}+holdfast://{host}:{self.port}"

    def start(self) -> Self:
        """Accept connections, in threads of its own. Raises `InvalidSettings` after `stop`."""
        with self._lock:
            if self._server.is_ending:
                raise InvalidSettings("this receiver was stopped, and its port is closed; make a new one")
            if self._thread is None:
                thread = threading.Thread(
                    target=self._server.serve_forever, args=(0.05,), name="holdfast-receiver", daemon=True
                )
                thread.start()
                self._thread = thread
        return self

    def stop(self) -> None:
        """Stop, after the batches that are being stored. Safe to call again; it cannot be started again."""
        with self._lock:
            if self._thread is not None:
                self._server.shutdown()
                self._thread.join()
                self._thread = None
            self._server.finish()

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()


class _Server(HttpServer):
    def __init__(
        self,
        receiving: Receiving,
        address: tuple[str, int],
        digests: frozenset[bytes],
        context: ssl.SSLContext | None,
        bounds: ServerLimits,
    ) -> None:
        self.receiving = receiving
        self.digests = digests
        self.working = threading.BoundedSemaphore(_AT_A_TIME)
        super().__init__(address, _Handler, context, bounds)


class _Handler(Handler):
    server: _Server

    def do_POST(self) -> None:  # noqa: N802  as the library calls it
        self._serve(self._take)

    def do_GET(self) -> None:  # noqa: N802  as the library calls it
        self._serve(self._position)

    def _serve(self, work: Callable[[bytes], dict[str, Any]]) -> None:
        body: bytes | None = None
        try:
            body = self.body(self._admit)
            with self.server.working:
                content = work(self.unpacked(body))
        except Refused as refused:
            if refused.status in (401, 403):
                log.warning("%s: %s", self.client_address[0], refused)
            self._answer(refused.status, {"error": str(refused)})
        except StoreForked as error:
            log.warning("%s", error)
            self._answer(409, {"error": str(error)})
        except (StoreFull, StoreBusy) as error:
            self._answer(503, {"error": str(error)})
        except Exception as error:  # the sender must not mistake our bug for a broken link
            if body is None and not isinstance(error, HoldfastError):
                raise  # the connection broke
            log.exception("a batch of %s could not be stored", self.client_address[0])
            self._answer(500, {"error": str(error) or type(error).__name__})
        else:
            self._answer(200, content)

    def _admit(self) -> None:
        self._sender_id = self._sender()

    def _take(self, body: bytes) -> dict[str, Any]:
        store_id, epoch, sink = self._sender_id
        try:
            lane = Lane(self._header("Lane"))
        except ValueError as error:
            raise Refused(400, str(error)) from error
        first, last = self._integer("First"), self._integer("Last")
        committed = self._token("Token") if "Holdfast-Token" in self.headers else None
        following, checksum = self._token("Next"), self._header("Sha256")
        if first > last or not _SHA256.fullmatch(checksum):
            raise Refused(400, "the range of seqs or the checksum is invalid")
        if hashlib.sha256(body).hexdigest() != checksum:
            raise Refused(503, "the body does not match its checksum; send it again")
        is_records = lane is Lane.RECORDS
        seqs = None if is_records else (first, last)
        position = PositionChange(store_id, epoch, sink, committed, following, seqs)
        receiving = self.server.receiving
        try:
            items: Any = unpack_records(body) if is_records else unpack_points(body)
        except ValueError as error:
            raise Refused(400, str(error)) from error
        taken: Taken = (receiving.take_records if is_records else receiving.take_points)(position, items)
        return {
            "token": following,
            "refused": [[row, reason] for row, reason in taken.refused],
            "repeat": taken.repeat,
        }

    def _position(self, _body: bytes) -> dict[str, Any]:
        store_id, epoch, sink = self._sender_id
        positions = self.server.receiving.positions_of(store_id, sink)
        current = next((position for position in positions if position.epoch == epoch), None)
        return {
            "token": None if current is None else current.token,
            "epochs": [
                {
                    "epoch": position.epoch,
                    "low": position.taken.low,
                    "ranges": position.taken.ranges,
                    "points": position.points,
                }
                for position in positions
            ],
        }

    def _sender(self) -> tuple[str, int, str]:
        """Return store id, epoch and sink of the request, after checking that its token belongs to the store."""
        digest = self._authorized()
        if self._header("Format") != FORMAT:
            raise Refused(400, f"this receiver speaks {FORMAT}")
        store_id = self._token("Store")
        epoch, sink = self._integer("Epoch"), unquote(self._header("Sink"), errors="replace")
        if not sink or len(sink) > 255 or not sink.isprintable():
            raise Refused(400, "the name of the sink is invalid")
        if digest is not None and self.server.receiving.owner_of(digest, store_id) != store_id:
            raise Refused(403, "this token belongs to another store; give each store a token of its own")
        return store_id, epoch, sink

    def _authorized(self) -> str | None:
        """Return the SHA-256 of the request's token in hexadecimal; None if no tokens are required."""
        if not self.server.digests:
            return None
        scheme, _, token = self.headers.get("Authorization", "").partition(" ")
        digest = hashlib.sha256(token.strip().encode("utf-8", "surrogateescape")).digest()
        known = [hmac.compare_digest(digest, other) for other in self.server.digests]
        if scheme.lower() != "bearer" or not any(known):
            raise Refused(401, "a bearer token that this receiver knows is required")
        return digest.hex()

    def _header(self, name: str) -> str:
        value = self.headers.get(f"Holdfast-{name}")
        if value is None:
            raise Refused(400, f"the header Holdfast-{name} is missing")
        return str(value)

    def _integer(self, name: str) -> int:
        text = self._header(name)
        if not _INTEGER.fullmatch(text) or abs(int(text)) >= 2**63:
            raise Refused(400, f"the header Holdfast-{name} is not a 64-bit integer")
        return int(text)

    def _token(self, name: str) -> str:
        text = self._header(name)
        if not _HEX.fullmatch(text):
            raise Refused(400, f"the header Holdfast-{name} is not 32 hexadecimal digits")
        return text

    def _answer(self, status: int, content: dict[str, Any]) -> None:
        headers = {"Content-Type": "application/json"}
        if status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        self.answer(status, json.dumps({"format": FORMAT} | content).encode(), headers)


def _digests(tokens: Iterable[str]) -> frozenset[bytes]:
    if isinstance(tokens, str):
        raise InvalidSettings("tokens: a list of texts is expected, not one text")
    try:
        listed = list(tokens)
    except TypeError as error:
        raise InvalidSettings("tokens: a list of texts is expected") from error
    for token in listed:
        if not isinstance(token, str) or len(token) < 16 or not token.isascii() or not token.isprintable():
            raise InvalidSettings("each token must be a text of at least 16 printable ASCII characters")
    return frozenset(hashlib.sha256(token.encode()).digest() for token in listed)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _context(certificate: str | Path | None, key: str | Path | None) -> ssl.SSLContext | None:
    if certificate is None:
        if key is not None:
            raise InvalidSettings("a key needs its certificate; give both files")
        return None
    chain = check_path(certificate, "certificate")
    private = None if key is None else check_path(key, "key")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    try:
        context.load_cert_chain(chain, private, password=lambda: "")
    except (OSError, ssl.SSLError) as error:
        raise InvalidSettings(
            f"{chain} and its key cannot be used: {error}; both must be PEM files, the key without a password"
        ) from error
    return context
