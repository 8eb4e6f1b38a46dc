"""token, send, tail: speak as a user of a deployment."""

from __future__ import annotations

import asyncio
import json
import secrets
from typing import Annotated

import typer

from imcore.errors import BadInput, OutcomeUnknown, Unavailable
from imcore.runtime import SystemClock
from imcore.words import direct_members, is_group, valid_id
from imctl import deployment
from imctl.identity import DAY_S, ipconf_urls, token_for
from imctl.options import Data, Format, Output
from imctl.output import printable, time_of_day
from imctl.target.local import Local
from services.sdk import (
    Changed,
    Client,
    ConnectionChanged,
    Event,
    FriendChanged,
    GroupChanged,
    IdentitySeen,
    Message,
    Missed,
    Moved,
    NotConnected,
    Options,
    Presence,
    SendFailed,
    Typing,
)

Uid = Annotated[str, typer.Argument(metavar="UID", help="The user to act as.")]
Device = Annotated[str, typer.Option(metavar="NAME", help="Device name to use.")]
From = Annotated[
    str | None,
    typer.Option("--from", metavar="ADDRESS", help="Public IP address to appear from."),
]
START_MS = 10_000


def token(
    uid: Uid,
    device: Annotated[str, typer.Argument(metavar="DEVICE", help="The device's name.")],
    ttl: Annotated[
        int, typer.Option(metavar="SECONDS", min=1, help="Lifetime of the token.")
    ] = DAY_S,
    admin: Annotated[
        bool,
        typer.Option(
            "--admin",
            help="Allow the client to name any address to ipconf, delete files and set stickers.",
        ),
    ] = False,
    kind: Annotated[
        str,
        typer.Option(
            metavar="KIND",
            help="Kind of device: phone, desktop, web or tablet [default: unspecified].",
            show_default=False,
        ),
    ] = "",
    data: Data = None,
) -> None:
    """Create a client token.

    It is signed with the region key.

    Example: imctl token ann phone --ttl 3600
    """
    print(token_for(deployment.find(data), uid, device, SystemClock(), ttl, admin, kind))


def send(
    uid: Uid,
    to: Annotated[str, typer.Argument(metavar="TO", help="A uid, or a group id (g:...).")],
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The message.")],
    device: Device = "imctl",
    source: From = None,
    replicated: Annotated[
        bool, typer.Option("--replicated", help="Wait until a second IDC has stored it.")
    ] = False,
    timeout: Annotated[
        float, typer.Option(metavar="SECONDS", min=0.1, help="Maximum time to wait for the ack.")
    ] = 10.0,
    trace: Annotated[
        bool, typer.Option("--trace", help="Trace the message, and print its trace id.")
    ] = False,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Send a message as a user.

    Returns once the message is durably stored.

    Exit status 4: not acked in time. The message stays in this device's outbox and is sent again by
    its next `send`.

    Example: imctl send ann bob "hello" --replicated
    """
    target = deployment.find(data)
    outbox = target.data / "clients" / f"{uid}.{device}.db"
    client = client_as(target, uid, device, source, outbox, trace)
    conversation = _conversation(client, to)
    outbox.parent.mkdir(parents=True, exist_ok=True)
    document = asyncio.run(_send(client, conversation, text, replicated, timeout))
    if output is Format.TABLE:
        print(f"{document['durability']} by {document['idc']} in {document['ms']:.0f} ms")
        if trace:
            print(f"traced: `imctl logs --trace {document['traceparent']}`")
    else:
        print(json.dumps(document))


def client_as(
    target: Local,
    uid: str,
    device: str,
    source: str | None,
    outbox: object = None,
    trace: bool = False,
) -> Client:
    return Client(
        token=token_for(target, uid, device, SystemClock()),
        ipconf=ipconf_urls(target),
        ca_file=target.pki / "ca.pem",
        outbox=str(outbox) if outbox else None,
        options=Options(
            client="imctl/1", start_timeout_ms=START_MS, trace_one_in=1 if trace else 0
        ),
        forwarded_for=source,
    )


def _conversation(client: Client, to: str) -> str:
    if is_group(to) or direct_members(to):
        return to
    if not valid_id(to):
        raise BadInput(f"TO: expected a uid or a conversation id, got {to!r}")
    return client.direct(to)


async def _send(
    client: Client, conversation: str, text: str, replicated: bool, timeout_s: float
) -> dict[str, object]:
    loop = asyncio.get_running_loop()
    try:
        async with asyncio.timeout(START_MS / 1000 + timeout_s), client:
            started = loop.time()
            sent = await client.send(conversation, text.encode(), timeout_ms=int(timeout_s * 1000))
            if replicated:
                await sent.replicated()
            return {
                "conversation": conversation,
                "key": sent.key,
                "durability": "replicated" if replicated else "stored",
                "idc": client.state.idc or str(sent.place.origin),
                "ms": round((loop.time() - started) * 1000, 1),
                "traceparent": sent.traceparent,
            }
    except SendFailed as error:
        if error.pending:
            raise OutcomeUnknown(str(error)) from error
        raise
    except TimeoutError as error:
        raise OutcomeUnknown("stored, but not replicated in time") from error
    except NotConnected as error:
        raise Unavailable(str(error)) from error


def tail(
    uid: Uid,
    device: Annotated[
        str | None, typer.Option(metavar="NAME", help="Device name to use [default: a new one].")
    ] = None,
    source: From = None,
    history: Annotated[
        int, typer.Option(metavar="N", min=0, help="Number of older messages to show.")
    ] = 0,
    output: Output = Format.TABLE,
    data: Data = None,
) -> None:
    """Follow what a user's device receives.

    Prints messages, moved messages and connection changes until Ctrl-C.

    Example: imctl tail bob --history 20
    """
    target = deployment.find(data)
    client = client_as(target, uid, device or f"tail-{secrets.token_hex(4)}", source)
    show = _as_line if output is Format.TABLE else _as_json
    client.on(lambda event: print(show(event), flush=True))
    try:
        asyncio.run(_tail(client, history))
    except NotConnected as error:
        raise Unavailable(str(error)) from error


async def _tail(client: Client, history: int) -> None:
    async with client:
        if history:
            for conversation in client.conversations():
                await client.sync_history(conversation, history)
        await asyncio.Event().wait()


def _as_json(event: Event) -> str:
    document = {"event": type(event).__name__} | event._asdict()
    if isinstance(event, Message | Changed):
        document["content"] = event.content.decode(errors="replace")
    return json.dumps(document, ensure_ascii=False)


def _as_line(event: Event) -> str:
    if isinstance(event, Message):
        at = time_of_day(event.composed_ms)
        note = f" (at {event.index}{', late' if event.late else ''})"
        text = printable(event.content.decode(errors="replace"))
        mentioned = "".join(f" @{uid}" for uid in event.mentions)
        answers = f" (reply to {event.reply})" if event.reply else ""
        return f"{at} {event.conversation} {event.uid}: {text}{mentioned}{answers}{note}"
    if isinstance(event, Moved):
        return f"moved in {event.conversation}: from {event.from_index} to {event.to_index}"
    if isinstance(event, ConnectionChanged):
        where = f"connected to {event.gateway}" if event.gateway else "not connected"
        return f"{where} ({event.reason})" if event.reason else where
    if isinstance(event, Changed):
        if event.recalled:
            return f"recalled in {event.conversation}: {event.key}"
        text = printable(event.content.decode(errors="replace"))
        given = "".join(f" [{uid}: {printable(code)}]" for uid, code in event.reactions)
        return f"changed in {event.conversation}: {text}{given}"
    if isinstance(event, Typing):
        return (
            f"{event.uid} {'is typing' if event.on else 'stopped typing'} in {event.conversation}"
        )
    if isinstance(event, Presence):
        return f"{event.uid} is {'online' if event.online else 'offline'}"
    if isinstance(event, GroupChanged):
        return f"changed in {event.conversation}: {_of_group(event)} (by {event.actor})"
    if isinstance(event, FriendChanged):
        return f"your relation to {event.uid} is now: {event.state or 'none'}"
    if isinstance(event, IdentitySeen):
        now = "has new keys" if event.changed else "has the keys"
        return f"{event.uid} on {event.device} {now}: {event.fingerprint}"
    if isinstance(event, Missed):
        return event.reason
    return f"{event.uid} has read {event.conversation}"


def _of_group(event: GroupChanged) -> str:
    said = [f"+{uid}" for uid in event.joined] + [f"-{uid}" for uid in event.left]
    said += [f"{uid} is {role}" for uid, role in event.roles]
    if event.name:
        said.append(f'renamed to "{printable(event.name)}"')
    if event.announcement is not None:
        said.append(f'announced: "{printable(event.announcement)}"')
    return ", ".join(said)
