"""Groups of commands that suggest the name that was probably meant."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from difflib import get_close_matches
from typing import ClassVar

import click

__all__ = ["SuggestingGroup", "suggestion"]


def suggestion(name: str, known: Collection[str]) -> str:
    """Return what may be meant by an unknown name, or how to list the known ones."""
    close = get_close_matches(name, known)
    return f"did you mean {' or '.join(map(repr, close))}?" if close else "--help lists the commands"


class SuggestingGroup(click.Group):
    """A group whose unknown commands are errors with a suggestion."""

    synonyms: ClassVar[Mapping[str, Collection[str]]] = {
        **dict.fromkeys(("delete", "del", "rm"), ("remove", "drop")),
        **dict.fromkeys(("ls", "ps"), ("list",)),
        **dict.fromkeys(("cat", "get", "info", "status"), ("show",)),
        **dict.fromkeys(("create", "new"), ("add",)),
        **dict.fromkeys(("edit", "set", "update"), ("change",)),
        **dict.fromkeys(("check", "ping"), ("test",)),
        **dict.fromkeys(("continue", "start", "unpause"), ("resume",)),
        "resend": ("retry", "replay"),
        "stop": ("pause",),
    }
    """The commands that may be meant by names from other programs. They are suggested, not accepted."""

    def resolve_command(
        self, context: click.Context, arguments: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command."""
        name, known = arguments[0], self.list_commands(context)
        if name.startswith("-") or name in known:
            return super().resolve_command(context, arguments)
        meant = [other for other in self.synonyms.get(name, ()) if other in known]
        hint = f"did you mean {meant[0]!r}?" if meant else suggestion(name, known)
        raise click.UsageError(f"there is no command {context.info_name} {name!r}; {hint}", context)

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands with the first sentence of each, which Click would cut after a line."""
        commands = {name: self.get_command(context, name) for name in self.list_commands(context)}
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, command.get_short_help_str(limit=200))
                    for name, command in commands.items()
                    if command
                ]
            )
