"""TLS of sinks: makes a client's context from files. Never connects."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from repo.errors import SinkHalted

__all__ = ["client_context", "halted_by_tls"]


def client_context(options: Mapping[str, Any]) -> ssl.SSLContext:
    """Return the context of the options `ca_file`, `cert_file` and `key_file`.

    The server's certificate and name are always checked. Raises `SinkHalted` for a file that cannot be used.
    """
    ca_file, cert_file, key_file = (options.get(name) for name in ("ca_file", "cert_file", "key_file"))
    if key_file is not None and cert_file is None:
        raise SinkHalted("the option key_file needs the option cert_file", path=key_file)
    for path in (ca_file, cert_file, key_file):
        if path is not None:
            _check_readable(Path(path))
    try:
        context = ssl.create_default_context(cafile=ca_file)
    except ssl.SSLError as error:
        raise SinkHalted(f"{ca_file} contains no PEM certificates: {_reason(error)}", path=ca_file) from error
    if cert_file is not None:
        try:
            context.load_cert_chain(cert_file, key_file, password=_no_password)
        except ssl.SSLError as error:
            raise SinkHalted(
                f"{cert_file} and {key_file or 'its key'} are not a PEM certificate with its key: {_reason(error)}",
                path=cert_file,
            ) from error
    return context


def halted_by_tls(error: BaseException, address: str) -> SinkHalted | None:
    """Return the error for a rejected certificate or protocol; None for a link that broke."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return SinkHalted(
            f"the certificate of {address} is not trusted: {error.verify_message or error}; check the option ca_file, "
            "the host name and the clock of this device"
        )
    broken = (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError)
    if isinstance(error, ssl.SSLError) and not isinstance(error, broken):
        why = _reason(error)
        if why == "WRONG_VERSION_NUMBER":
            why = "it does not speak TLS; give it a certificate, or use the scheme without TLS (http, mqtt)"
        return SinkHalted(f"TLS with {address} failed: {why}")
    return None


def _check_readable(path: Path) -> None:
    try:
        path.open("rb").close()
    except OSError as error:
        raise SinkHalted(f"{path} cannot be read: {error.strerror or error}", path=path) from error
    except ValueError as error:
        raise SinkHalted(f"{str(path)!r} is not a path: {error}") from error


def _reason(error: ssl.SSLError) -> str:
    return error.reason or str(error)


def _no_password() -> str:
    raise SinkHalted(
        "the key of the client's certificate has a password; store it without one, readable by its owner"
    )
