"""Every command's help has an example that would parse, and docs/cli.md is what the app says."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
import typer
from rich.cells import cell_len

from imctl import errors
from tools import gencli

NODES = list(gencli.nodes())
LEAVES = [node for node in NODES if not node.is_group]


def parse(command: Any, words: list[str], parent: Any = None) -> tuple[str, ...]:
    """The path of the command that the words call. It is not run; raises what wrong usage does."""
    context = command.make_context(words[0], words[1:], parent=parent)
    if not hasattr(command, "list_commands"):
        return ()
    # What a group leaves over begins with the name of the command below it.
    name, found, rest = command.resolve_command(context, [*context._protected_args, *context.args])
    return (name, *parse(found, [name, *rest], context))


def parse_line(line: str) -> tuple[str, ...]:
    words = shlex.split(line)
    assert words[0] == "imctl", line
    return parse(NODES[0].command, words)


@pytest.mark.parametrize("node", LEAVES, ids=lambda node: node.name)
def test_every_command_has_an_example_that_parses(node: gencli.Node) -> None:
    found = gencli.examples(node.command)
    assert found, f"{node.name}: its help needs a line `Example: {node.name} ...`"
    for example in found:
        assert parse_line(example) == node.path, example


@pytest.mark.parametrize(
    "line",
    [
        "imctl nonsense",
        "imctl up",
        "imctl up a.yaml b.yaml",
        "imctl drain fra --nonsense",
        "imctl op nonsense",
        "imctl token ann phone --ttl soon",
    ],
)
def test_an_example_that_does_not_parse_is_found(line: str) -> None:
    with pytest.raises(typer._click.exceptions.UsageError):
        parse_line(line)


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.name)
def test_help_fits_80_columns_with_each_example_on_one_line(
    node: gencli.Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert node.command.help
    monkeypatch.setenv("COLUMNS", "80")
    context = node.command.context_class(
        node.command, info_name=node.path[-1] if node.path else "imctl", parent=node.context.parent
    )
    lines = node.command.get_help(context).splitlines()
    assert max(map(cell_len, lines)) <= 80
    for example in gencli.examples(node.command):
        assert f"  {gencli.EXAMPLE}{example}" in lines


def test_the_page_is_what_the_app_says() -> None:
    text = gencli.PAGE.read_text()
    assert text == gencli.page(), "run `make docs`"
    headings = [line.lstrip("# ") for line in text.splitlines() if line.startswith("##")]
    assert headings == [*(node.name for node in NODES), "Exit status"]
    assert "| `--dry-run` |" in text


def test_the_page_lists_every_exit_status_that_the_code_has() -> None:
    numbers = {v for name, v in vars(errors).items() if name.isupper() and isinstance(v, int)}
    assert set(gencli.exit_codes()) == numbers
    assert all(gencli.exit_codes().values())
