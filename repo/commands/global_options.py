"""The options that every command accepts, before and after its name, and the store as an argument."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
from click.core import ParameterSource

from repo.commands.session import DEFAULT_STORE, Session

__all__ = ["global_options", "group_options", "output_options", "store_argument"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


class _StorePath(click.Path):
    """The path of a store; an empty one, as of a variable that is not set, is not the current folder."""

    def convert(self, value: Any, parameter: click.Parameter | None, context: click.Context | None) -> Any:
        if not str(value).strip():
            self.fail("the path of the store is empty", parameter, context)
        return super().convert(value, parameter, context)


_PATH = _StorePath(readable=False, path_type=Path)  # the store itself reports permission errors


def group_options(function: Decorated) -> Decorated:
    """Add the global options to the group, where the environment can set them too."""
    return _store(_output(function, envvar="HOLDFAST_JSON"), default=DEFAULT_STORE, show_default=True)


def global_options(function: Decorated) -> Decorated:
    """Add all global options to a command."""
    return _store(_output(function))


def output_options(function: Decorated) -> Decorated:
    """Add the global options to a command that uses no store: all but `--store`."""
    return _output(function)


def store_argument(function: Decorated) -> Decorated:
    """Accept the store's path as the only argument of a command."""
    argument = click.argument(
        "path", metavar="[STORE]", required=False, type=_PATH, expose_value=False, callback=_name_store
    )
    return argument(function)


def _store(function: Decorated, **more: Any) -> Decorated:
    option = click.option(
        "--store",
        metavar="PATH",
        envvar="HOLDFAST_STORE" if more else None,
        show_envvar=bool(more),
        type=_PATH,
        expose_value=False,
        callback=_name_store,
        help="The store's folder, or its column file.",
        **more,
    )
    return option(function)


def _output(function: Decorated, *, envvar: str | None = None) -> Decorated:
    for option in (
        click.option(
            "-v",
            "--verbose",
            count=True,
            expose_value=False,
            callback=_set_verbose,
            help="Log what the store does; repeat for more detail.",
        ),
        click.option(
            "-q",
            "--quiet",
            is_flag=True,
            expose_value=False,
            callback=_set_quiet,
            help="Print data and errors only.",
        ),
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            envvar=envvar,
            expose_value=False,
            callback=_set_json,
            help="Print JSON.",
        ),
    ):
        function = option(function)
    return function


def _name_store(context: click.Context, parameter: click.Parameter, path: Path | None) -> None:
    if path is not None:
        session = context.ensure_object(Session)
        session.name_store(
            path, is_typed=context.get_parameter_source(str(parameter.name)) is ParameterSource.COMMANDLINE
        )


def _set_json(context: click.Context, _parameter: click.Parameter, is_given: bool) -> None:
    if is_given:
        context.ensure_object(Session).as_json = True


def _set_quiet(context: click.Context, _parameter: click.Parameter, is_given: bool) -> None:
    if is_given:
        context.ensure_object(Session).log_level(quiet=True)


def _set_verbose(context: click.Context, _parameter: click.Parameter, count: int) -> None:
    if count:
        context.ensure_object(Session).log_level(verbose=count)
