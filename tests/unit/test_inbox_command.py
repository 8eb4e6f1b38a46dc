"""What `imctl conversations` and `imctl search` print."""

from __future__ import annotations

import json

import pytest
from rich.console import Console

from imctl.commands import inbox
from services.sdk import Found, Last, Summary

HOSTILE = b"[red]\x1b[2J\xff"


def printed(table: object) -> str:
    console = Console(width=100)
    with console.capture() as captured:
        console.print(table)
    return captured.get()


@pytest.mark.parametrize(
    ("row", "line"),
    [
        (Summary("g:a", "team", 200, True, None, True, True), "team (pinned) (muted)  200+"),
        (
            Summary("d:a:b", "", 1, False, Last("k", "a", b"hello", 1, False), False, False),
            "d:a:b         1       a: hello",
        ),
        (
            Summary("d:a:b", "", 0, False, Last("k", "a", b"", 1, True), False, False),
            "d:a:b         0       a: (recalled)",
        ),
        (
            Summary("d:a:b", "", 0, False, Last("k", "a", HOSTILE, 1, False), False, False),
            "d:a:b         0       a: [red]\N{REPLACEMENT CHARACTER}[2J\N{REPLACEMENT CHARACTER}",
        ),
    ],
)
def test_a_line_of_the_list(row: Summary, line: str) -> None:
    assert printed(inbox._list([row])).splitlines()[1].rstrip() == line
    assert json.loads(json.dumps(inbox._plain_summary(row)))["unread"] == row.unread


def test_a_message_that_was_found() -> None:
    row = Found("d:a:b", "k", "a", HOSTILE, 0)
    assert "d:a:b         a    [red]\N{REPLACEMENT CHARACTER}[2J" in printed(inbox._messages([row]))
    assert inbox._plain_found(row)["content"] == HOSTILE.decode(errors="replace")
