"""Asking: a question before something is lost or repeated, and the options that answer it."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, TypeVar

import click

from repo.commands.session import Session

__all__ = ["asked", "asking_options", "check_asking"]

Decorated = TypeVar("Decorated", bound=Callable[..., Any])


def asking_options(function: Decorated) -> Decorated:
    """Add `--dry-run` and `-y` to a command."""
    for option in (
        click.option("-y", "--yes", is_flag=True, help="Do not ask."),
        click.option("--dry-run", is_flag=True, help="Show what would happen; change nothing."),
    ):
        function = option(function)
    return function


def check_asking(session: Session, *, dry_run: bool, yes: bool, asks: bool = True) -> None:
    """Refuse options that contradict each other, and questions that --json cannot ask."""
    if dry_run and yes:
        raise click.UsageError("--dry-run and -y cannot be combined")
    if session.as_json and asks and not dry_run and not yes:
        raise click.UsageError("--json does not ask for confirmation; add -y or --dry-run")


def asked(question: str) -> None:
    """Ask on stderr; `Abort` for no, and a usage error if nobody can answer."""
    try:
        is_confirmed = click.confirm(question, err=True)
    except click.Abort as no_answer:
        if sys.stdin.isatty():
            raise
        raise click.UsageError(
            "nothing was changed, because nobody confirmed it; add -y to continue without confirmation"
        ) from no_answer
    if not is_confirmed:
        raise click.Abort
