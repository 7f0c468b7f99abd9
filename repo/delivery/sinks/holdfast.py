"""The Holdfast sink: delivers batches to the receiver of another store (`repo.delivery.receiver`), exactly once."""

from __future__ import annotations

import gzip
import json
from hashlib import sha256
from typing import Any
from urllib.parse import quote

from repo.cursors import Cursor
from repo.delivery.chain import HeldSeqs, forked
from repo.delivery.encodings.packed import FORMAT, pack_points, pack_records
from repo.delivery.limits import AS_COLUMNS
from repo.delivery.protocol import Batch, Item, Lane, Outcome
from repo.delivery.secrets import Secret
from repo.delivery.sinks.connection import Connection, checked_url, rejected
from repo.errors import HoldfastError, InvalidSettings, SinkHalted, SinkRefused, SinkUnreachable
from repo.inputs.arguments import check_text
from repo.store.sink_options import effective_options

__all__ = ["HoldfastSink"]

_GZIP_LEVEL = 1


class HoldfastSink:
    """Delivers to `http+holdfast://host:port` or `https+holdfast://host:port`. For one thread.

    The options are those of the kind `holdfast` in `repo.store.sink_options`. An answer counts only if it has the token
    of the batch, so the login page of a captive portal is not a receipt.
    """

    exact = True
    takes_records = True
    limits = AS_COLUMNS

    def __init__(self, target: str, *, name: str, **options: Any) -> None:
        self._name = check_text(name, "name", error=InvalidSettings)
        self._options = effective_options("holdfast", options)
        target = check_text(target, "target", error=InvalidSettings)
        scheme, _, rest = target.partition("://")
        parts = checked_url(f"{scheme.removesuffix('+holdfast')}://{rest}")
        self._connection = Connection(parts)
        self._path = quote(parts.path or "/", safe="/%:@!$&'()*+,;=~")
        token = self._options["token"]
        self._token = None if token is None else Secret("token", token)
        self._headers: dict[str, str] = {}

    @property
    def name(self) -> str:
        """The name of the cursor in the store."""
        return self._name

    def open(self, store_id: str, epoch: int) -> str | None:
        """Connect, and return the token of this store's position at the receiver."""
        self._headers = {
            "Holdfast-Format": FORMAT,
            "Holdfast-Store": store_id,
            "Holdfast-Epoch": str(epoch),
            "Holdfast-Sink": quote(self._name, safe=""),
            "Accept": "application/json",
        }
        if self._token is not None:
            revealed = self._token.reveal()
            if not revealed.isascii():
                raise SinkHalted("the token must be ASCII; check what the option token refers to")
            self._headers["Authorization"] = f"Bearer {revealed}"
        self._connection.open(self._options)
        try:
            token = self._position().get("token")
        except HoldfastError:
            self.close()
            raise
        return token if isinstance(token, str) else None

    def send(self, batch: Batch) -> Outcome:
        """Send a batch; its points and the position are stored there in one transaction."""
        if not self._connection.is_open:
            self.open(batch.store_id, batch.epoch)
        is_records = batch.lane is Lane.RECORDS
        body = pack_records(batch.records) if is_records else pack_points(batch.columns)
        committed, following = batch.tokens
        headers = {
            **self._headers,
            "Content-Type": "application/json" if is_records else "application/octet-stream",
            "Holdfast-Lane": str(batch.lane),
            "Holdfast-First": str(batch.first_seq),
            "Holdfast-Last": str(batch.last_seq),
            "Holdfast-Next": following,
            "Holdfast-Sha256": sha256(body).hexdigest(),
        }
        if committed is not None:
            headers["Holdfast-Token"] = committed
        if self._options["compression"] == "gzip":
            headers["Content-Encoding"] = "gzip"
            body = gzip.compress(body, _GZIP_LEVEL, mtime=0)
        receipt = self._asked("POST", body, headers)
        if receipt.get("token") != following:
            raise SinkUnreachable(
                f"{self._connection.address} confirmed another batch; the batch is sent again"
            )
        return Outcome(_items(receipt.get("refused"), len(batch)), receipt.get("repeat") is True, len(body))

    def held(self, store_id: str) -> list[HeldSeqs]:  # noqa: ARG002  the receiver knows which store asks
        """Return the seqs that the receiver has taken from this sink, in every epoch."""
        try:
            return [
                HeldSeqs(int(held["epoch"]), Cursor.of(int(held["low"]), held["ranges"]))
                for held in self._position()["epochs"]
            ]
        except (LookupError, TypeError, ValueError) as error:
            raise SinkUnreachable(f"{self._connection.address} answered without a position") from error

    def close(self) -> None:
        """Close the connection. Safe to call again; `open` connects again."""
        self._connection.close()

    def _position(self) -> dict[str, Any]:
        return self._asked("GET", None, self._headers)

    def _asked(self, method: str, body: bytes | None, headers: dict[str, str]) -> dict[str, Any]:
        answer = self._connection.exchange(method, self._path, body, headers)
        address = self._connection.address
        try:
            content: Any = json.loads(answer.body)
        except (ValueError, RecursionError):
            content = None
        is_receiver = isinstance(content, dict) and content.get("format") == FORMAT
        if answer.is_success:
            if is_receiver:
                return dict(content)
            raise SinkUnreachable(
                f"{address} answered without a receipt (a login page, a proxy, another program?): {answer}"
            )
        if is_receiver:  # without the frame of JSON around its reason
            answer = answer._replace(body=str(content.get("error")).encode())
        match answer.status:
            case 409 if is_receiver:
                raise forked(address)
            case 413:
                raise SinkRefused(f"{address} answered {answer}")
            case 401 | 403 if is_receiver:  # it says what to check
                raise SinkHalted(f"{address} answered {answer}")
            case 400 | 409 | 415 | 422:  # it never refuses what a batch contains in this way
                raise SinkHalted(f"{address} answered {answer}")
            case _:
                raise rejected(answer, address)


def _items(refused: Any, rows: int) -> tuple[Item, ...]:
    """Return the refused items of a receipt; what is not one is left out, because the rest was stored."""
    listed = refused if isinstance(refused, list) else []
    return tuple(
        Item(item[0], str(item[1]))
        for item in listed
        if isinstance(item, list) and len(item) >= 2 and type(item[0]) is int and 0 <= item[0] < rows
    )
