"""Write docs/cli.md, the reference of every command, from the app itself; --check: compare."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import typer

from imctl import errors
from imctl.main import COMMANDS, app, load

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "cli.md"
WIDTH = 80
EXAMPLE = "Example: "
_CODE = re.compile(r"^[A-Z]+ = (\d+)(?:  # (.+))?$", re.MULTILINE)

HEAD = """\
# imctl: every command

Generated from the app by `make docs`; not edited. [imctl.md](imctl.md) says what the commands have
in common and how the local target works. `-h` is short for `--help`, everywhere.
"""


class Node(NamedTuple):
    path: tuple[str, ...]  # ("op", "list"); () is imctl itself
    command: Any  # of typer's own copy of click
    context: Any

    @property
    def name(self) -> str:
        return " ".join(("imctl", *self.path))

    @property
    def is_group(self) -> bool:
        return hasattr(self.command, "list_commands")


def nodes() -> Iterator[Node]:
    """imctl itself, then every command and group in the order of `imctl --help`."""
    root = Node((), typer.main.get_command(app), None)
    context = root.command.context_class(root.command, info_name="imctl", terminal_width=WIDTH)
    yield root._replace(context=context)
    for name in COMMANDS:
        yield from _below((name,), load(name), context)


def _below(path: tuple[str, ...], command: Any, parent: Any) -> Iterator[Node]:
    context = command.context_class(
        command, info_name=path[-1], parent=parent, terminal_width=WIDTH
    )
    node = Node(path, command, context)
    yield node
    if node.is_group:
        for name in command.list_commands(context):
            yield from _below((*path, name), command.get_command(context, name), context)


def examples(command: Any) -> list[str]:
    """The commands of its help's lines that begin with "Example: "."""
    lines = (line.strip() for line in (command.help or "").splitlines())
    return [line.removeprefix(EXAMPLE) for line in lines if line.startswith(EXAMPLE)]


def page() -> str:
    """The whole file."""
    return "\n".join([HEAD, *map(_section, nodes()), _exit_codes()])


def _section(node: Node) -> str:
    level = "##" if len(node.path) < 2 else "###"
    usage = " ".join(node.command.collect_usage_pieces(node.context))
    parts = [f"{level} {node.name}\n", f"    {node.name} {usage}\n", *_prose(node.command)]
    arguments: list[tuple[str, str]] = []
    options: list[tuple[str, str]] = []
    for param in node.command.get_params(node.context):
        record = param.get_help_record(node.context)
        if record is not None:
            rows = arguments if param.param_type_name == "argument" else options
            if "--help" not in param.opts:
                rows.append(record)
    if node.is_group and node.path:
        names = [
            (name, node.command.get_command(node.context, name).get_short_help_str(WIDTH))
            for name in node.command.list_commands(node.context)
        ]
        parts.append(_table("command", names))
    for kind, rows in (("argument", arguments), ("option", options)):
        if rows:
            parts.append(_table(kind, rows))
    return "\n".join(parts)


def _prose(command: Any) -> Iterator[str]:
    """Paragraphs of its help; examples as code."""
    for paragraph in (command.help or "").strip().split("\n\n"):
        lines = [line.strip() for line in paragraph.splitlines()]
        text = [line for line in lines if not line.startswith(EXAMPLE)]
        if any(text):
            yield _escaped(" ".join(text)) + "\n"
    if found := examples(command):
        yield "Example:\n\n" + "".join(f"    {line}\n" for line in found)


def _table(kind: str, rows: list[tuple[str, str]]) -> str:
    lines = [f"| {kind} | meaning |", "| --- | --- |"]
    for name, meaning in rows:
        code = " ".join(name.split()).replace("|", "\\|")
        lines.append(f"| `{code}` | {_escaped(' '.join(meaning.split()))} |")
    return "\n".join(lines) + "\n"


def _escaped(text: str) -> str:
    """As Markdown shows it unchanged; code between backticks stays."""
    parts = text.split("`")
    parts[::2] = [re.sub(r"([*<|])", r"\\\1", part) for part in parts[::2]]
    parts[1::2] = [part.replace("|", "\\|") for part in parts[1::2]]
    return "`".join(parts)


def exit_codes() -> dict[int, str]:
    """As imctl/errors.py names them: the comment behind each."""
    text = Path(errors.__file__).read_text()
    return {int(code): meaning for code, meaning in _CODE.findall(text)}


def _exit_codes() -> str:
    rows = [f"| {code} | {_escaped(meaning)} |" for code, meaning in sorted(exit_codes().items())]
    head = ["## Exit status\n", "| status | meaning |", "| --- | --- |"]
    rest = "\nA command's own meaning of 0, 1 and 2 stands in its help. 130: Ctrl-C.\n"
    return "\n".join([*head, *rows]) + "\n" + rest


if __name__ == "__main__":
    if "--check" in sys.argv:
        if not PAGE.exists() or PAGE.read_text() != page():
            raise SystemExit("run `make docs`: stale docs/cli.md")
    else:
        PAGE.write_text(page())
