"""What is printed is what was there."""

from __future__ import annotations

import pytest
from rich.table import Table

from imctl import output


def test_a_conversations_id_is_no_emoji(capsys: pytest.CaptureFixture[str]) -> None:
    for console in (output.console(), output.notes()):
        table = Table()
        table.add_column("CONVERSATION")
        table.add_row("d:a:b")
        console.print(table)
    said = capsys.readouterr()
    assert "d:a:b" in said.out and "d:a:b" in said.err
