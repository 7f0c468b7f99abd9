"""Arguments from the environment: values for arguments that a call omits."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec

from repo.errors import InvalidSettings
from repo.settings import BOOLEANS

__all__ = ["filled_from_environment", "from_environment"]

P = ParamSpec("P")


def filled_from_environment(
    variables: Mapping[str, tuple[str, Callable[[str], Any]]],
) -> Callable[[Callable[P, None]], Callable[P, None]]:
    """Let environment variables (name of argument: variable, reader) override the defaults of a function.

    An argument that the caller passes wins, even if it equals the default. The signature does not change.
    """

    def decorate(function: Callable[P, None]) -> Callable[P, None]:
        signature = inspect.signature(function)

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> None:
            given = signature.bind(*args, **kwargs).arguments
            for argument, (variable, read) in variables.items():
                if argument not in given and (found := from_environment(variable, read)) is not None:
                    kwargs[argument] = found
            function(*args, **kwargs)

        return call

    return decorate


def from_environment(variable: str, read: Callable[[str], Any]) -> Any:
    """Return a variable as converted by `read`, or None if it is unset or empty; raises `InvalidSettings`."""
    text = os.environ.get(variable, "").strip()
    if not text:
        return None
    try:
        return BOOLEANS[text.lower()] if read is bool else read(text)
    except (ValueError, KeyError) as error:
        raise InvalidSettings(f"{variable} = {text!r} is not a valid {read.__name__}") from error
