"""conversations, search: what a user of a deployment has, as the IDC that serves them tells it."""

from __future__ import annotations

import asyncio
import itertools
import secrets
from collections.abc import Awaitable, Callable, Sequence
from typing import Annotated, TypeVar

import typer
from rich.table import Table
from rich.text import Text

from imcore.errors import Unavailable
from imctl import deployment
from imctl.commands.chat import From, Uid, client_as
from imctl.options import Data, Format, Output
from imctl.output import emit, printable, time_of_day
from services.sdk import Client, Found, NotConnected, Summary

T = TypeVar("T")


def conversations(
    uid: Uid, source: From = None, output: Output = Format.TABLE, data: Data = None
) -> None:
    """List a user's conversations.

    Pinned ones come first, then the most recent.

    Example: imctl conversations bob
    """
    client = client_as(deployment.find(data), uid, _device(), source)
    rows = asyncio.run(_asked(client, Client.conversation_list))
    emit([_plain_summary(row) for row in rows], output, lambda: _list(rows))


def search(
    uid: Uid,
    words: Annotated[str, typer.Argument(metavar="WORDS", help="Words that must all appear.")],
    conversation: Annotated[
        str,
        typer.Option("--in", metavar="CONVERSATION", help="Id of the only conversation to search."),
    ] = "",
    limit: Annotated[
        int, typer.Option(metavar="N", min=1, help="Maximum number of messages.")
    ] = 20,
    source: From = None,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Search a user's conversations.

    Shows the matching messages, newest first.

    Example: imctl search bob "lunch noon"
    """
    client = client_as(deployment.find(data), uid, _device(), source)
    rows = asyncio.run(_asked(client, lambda of: _first(of, words, conversation, limit)))
    emit([_plain_found(row) for row in rows], output, lambda: _messages(rows))


def _device() -> str:
    return f"inbox-{secrets.token_hex(4)}"  # of its own: nobody else's session ends


async def _asked(client: Client, ask: Callable[[Client], Awaitable[T]]) -> T:
    try:
        async with client:
            return await ask(client)
    except NotConnected as error:
        raise Unavailable(str(error)) from error


async def _first(client: Client, words: str, conversation: str, limit: int) -> list[Found]:
    found: list[Found] = []
    async for row in client.search(words, conversation):
        found.append(row)
        if len(found) == limit:
            break
    return found


def _plain_summary(row: Summary) -> dict[str, object]:
    last = row.last
    shown = None if last is None else last._asdict() | {"content": _text(last.content)}
    return row._asdict() | {"last": shown}


def _plain_found(row: Found) -> dict[str, object]:
    return row._asdict() | {"content": _text(row.content)}


def _text(content: bytes) -> str:
    return content.decode(errors="replace")


def _list(rows: Sequence[Summary]) -> Table:
    table = _table("CONVERSATION", "UNREAD", "LAST")
    for row in rows:
        unread = f"{row.unread}{'+' if row.more_unread else ''}"
        notes = itertools.compress(("pinned", "muted"), (row.pinned, row.muted))
        name = " ".join((row.name or row.conversation, *(f"({note})" for note in notes)))
        last = row.last
        said = "" if last is None else f"{last.uid}: {_text(last.content)}"
        if last is not None and last.recalled:
            said = f"{last.uid}: (recalled)"
        table.add_row(_cell(name), unread, _cell(said))
    return table


def _messages(rows: Sequence[Found]) -> Table:
    table = _table("AT", "CONVERSATION", "UID", "SAYS")
    for row in rows:
        said, name = _cell(_text(row.content)), _cell(row.conversation)
        table.add_row(time_of_day(row.composed_ms), name, row.uid, said)
    return table


def _table(*columns: str) -> Table:
    table = Table(box=None, pad_edge=False)
    for column in columns:
        table.add_column(column, overflow="fold")
    return table


def _cell(text: str) -> Text:
    return Text(printable(text))  # neither what it says nor an id (d:a:b) is markup
