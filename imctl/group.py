"""A group of commands, such as `imctl drill`."""

from __future__ import annotations

from typing import Any

from typer.core import TyperGroup

_WHOLE = 10_000  # characters of a summary


class Commands(TyperGroup):
    """Its help says in whole what each command does, on as many lines as that takes."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        found = [(name, self.get_command(ctx, name)) for name in self.list_commands(ctx)]
        rows = [(name, command.get_short_help_str(_WHOLE)) for name, command in found if command]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
