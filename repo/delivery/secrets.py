"""Secrets of sinks: resolves `env:NAME` and `file:PATH` each time a sink is opened. Never stores or shows a value."""

from __future__ import annotations

import os
from pathlib import Path
from typing import final

from repo.errors import SinkHalted
from repo.store.sink_options import is_reference

__all__ = ["Secret"]

_MOST_BYTES = 65_536


@final
class Secret:
    """A secret: a reference (`env:NAME`, `file:PATH`), or the value itself, which its repr hides."""

    __slots__ = ("_name", "_text")

    def __init__(self, name: str, text: str) -> None:
        self._name = name
        self._text = text

    def __repr__(self) -> str:
        return f"<Secret {self._name}: {self._text if is_reference(self._text) else 'hidden'}>"

    def reveal(self) -> str:
        """Return the value as it is now; raises `SinkHalted` if the variable or the file is missing or unusable."""
        if not is_reference(self._text):
            return self._text
        place, _, at = self._text.partition(":")
        value = self._from_environment(at) if place == "env" else self._from_file(Path(at))
        if not value or not value.isprintable():
            raise SinkHalted(f"the {self._name} in {self._text} must be one line of text and not empty")
        return value

    def _from_environment(self, variable: str) -> str:
        value = os.environ.get(variable)
        if value is None:
            raise SinkHalted(
                f"the environment variable {variable}, which holds the {self._name}, is not set; set it for the "
                "process that delivers, and restart it"
            )
        return value

    def _from_file(self, path: Path) -> str:
        try:
            with path.open("rb") as file:
                content = file.read(_MOST_BYTES + 1)
            text = content.decode()
        except OSError as error:
            raise SinkHalted(  # absolute, because a service has another working directory than the shell
                f"{path.absolute()}, which holds the {self._name}, cannot be read: {error.strerror or error}",
                path=path,
            ) from error
        except ValueError as error:  # also a zero byte in the path
            raise SinkHalted(f"{path}, which holds the {self._name}, is not UTF-8", path=path) from error
        if len(content) > _MOST_BYTES:
            raise SinkHalted(
                f"{path}, which holds the {self._name}, is larger than {_MOST_BYTES:,} bytes", path=path
            )
        return text.removesuffix("\n").removesuffix("\r")
