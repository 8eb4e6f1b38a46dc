"""What the chat page does, in a real browser, with answers that no whole IDC gives on demand."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path

import pytest
from aiohttp import WSMsgType, web

from imcore import frame, pki
from imcore.proto import client_pb2 as pb
from imctl.testing.browser import Driven
from imctl.web.serve import Pages
from services.sdk.core.reconnect import FOR_GOOD

PAIR = "d:ann:bob"
STATE = "(document.getElementById('state')?.textContent ?? '')"


class ScriptedPages(Pages):
    """The real page, whose gateway is in this process and answers as a test says: ``answers`` by
    the name of a request's body. The IDC that serves is ``idc``."""

    def __init__(self, session: dict[str, str | int], ca_file: Path) -> None:
        super().__init__(session, [], ca_file)
        self.idc = "east"
        self.connects = 0
        self.asked: list[pb.Request] = []
        self.answers: dict[str, Callable[[pb.Request], pb.Response]] = {
            "connect": self._connected,
            "heartbeat": lambda _: pb.Response(heartbeat_ok=pb.HeartbeatOk()),
            "sync": lambda _: pb.Response(sync_ok=pb.SyncOk(token=b"t")),
        }
        self._socket: web.WebSocketResponse | None = None

    async def _ask_ipconf(self, request: web.Request) -> web.Response:
        gateway = {"gateway": "g1", "idc": self.idc, "host": "127.0.0.1", "port": 1}
        parameters = {"heartbeat_ms": 5_000}
        return web.json_response({"gateways": [gateway], "parameters": parameters, "placement": ""})

    async def _connect(self, request: web.Request) -> web.StreamResponse:
        socket = self._socket = web.WebSocketResponse()
        await socket.prepare(request)
        await socket.send_bytes(frame.server_preface(frame.VERSION))
        decoder, spoken = frame.FrameDecoder(), False
        async for message in socket:
            if message.type is not WSMsgType.BINARY:
                continue
            data = message.data if spoken else message.data[frame.CLIENT_PREFACE_BYTES :]
            spoken = True
            for received in decoder.feed(data):
                asked = pb.Request.FromString(received.body)
                self.asked.append(asked)
                answer = self.answers[str(asked.WhichOneof("body"))](asked)
                body = answer.SerializeToString()
                await socket.send_bytes(frame.encode(frame.RESPONSE, received.id, body))
        return socket

    def _connected(self, request: pb.Request) -> pb.Response:
        self.connects += 1
        origin = pb.Origin(idc=self.idc, incarnation=1)
        ok = pb.ConnectOk(resume_token=b"r", heartbeat_ms=5_000, origin=origin, gateway="g1")
        return pb.Response(connect_ok=ok)

    async def tell(self, event: pb.Event) -> None:
        assert self._socket is not None
        with contextlib.suppress(ConnectionError):
            body = event.SerializeToString()
            await self._socket.send_bytes(frame.encode(frame.EVENT, 0, body))

    async def close(self, reason: str) -> None:
        await self.tell(pb.Event(close=pb.Close(reason=reason)))
        assert self._socket is not None
        await self._socket.close()


@asynccontextmanager
async def scripted(folder: Path) -> AsyncIterator[ScriptedPages]:
    pki.init(folder / "pki", {}, datetime.now(UTC))
    session: dict[str, str | int] = {
        "uid": "ann",
        "device": "web",
        "token": "t",
        "region": "lab",
        "content_bytes_max": 1_000,
    }
    pages = ScriptedPages(session, folder / "pki" / "ca.pem")
    await pages.start(0)
    try:
        yield pages
    finally:
        await pages.stop()


async def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    """Raises TimeoutError."""
    async with asyncio.timeout(seconds):
        while not holds():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


async def opened(browser: Driven, pages: Pages, whom: str = "bob") -> str:
    """A page that is connected and shows the conversation with them."""
    page = await browser.open(pages.url)
    await browser.until(page, f"{STATE}.startsWith('connected')")
    await browser.run(
        page,
        f"document.getElementById('with').value = '{whom}';"
        "document.getElementById('open').requestSubmit()",
    )
    return page


@pytest.mark.parametrize("reason", [*FOR_GOOD, "drained"])
async def test_who_was_ended_for_good_does_not_come_back_unasked(
    chromium: str, tmp_path: Path, reason: str
) -> None:
    async with scripted(tmp_path) as pages, Driven(chromium, tmp_path / "profile") as browser:
        page = await opened(browser, pages)
        await pages.close(reason)
        if reason in FOR_GOOD:
            await browser.until(page, f"{STATE}.startsWith('{reason}: ')")
            await asyncio.sleep(1.5)  # it comes back within 0.4 s from any other end
            assert pages.connects == 1
            assert (await browser.run(page, STATE)).startswith(f"{reason}: ")
            await browser.reload(page)  # a person may
        await until(lambda: pages.connects >= 2)
        await browser.until(page, f"{STATE}.startsWith('connected')")


class Outbox:
    """A gateway's side of sends: ``refuse`` has errors by content; ``taken`` are the outbox ids,
    cids and contents of what it accepted, and ``replicated``, whether another IDC has them too."""

    def __init__(self, pages: ScriptedPages) -> None:
        self._pages = pages
        self.refuse: dict[str, pb.Error] = {}
        self.taken: list[tuple[str, int, str]] = []
        self.offered: list[str] = []
        self.replicated = True
        pages.answers["send"] = self._send

    def _send(self, request: pb.Request) -> pb.Response:
        send, content = request.send, request.send.content.decode()
        self.offered.append(content)
        if content in self.refuse:
            return pb.Response(error=self.refuse[content])
        # As an IDC does: the lowest cid at or above the floor that it does not know.
        known = {cid for outbox, cid, _ in self.taken if outbox == send.outbox}
        want = max(1, send.floor)
        while want in known:
            want += 1
        if send.cid not in known and send.cid != want:
            return pb.Response(send_ack=pb.SendAck(outcome=pb.SendAck.WANT, want=want))
        if send.cid not in known:
            self.taken.append((send.outbox, send.cid, content))
        ack = pb.SendAck(partition=1, lsn=len(self.taken), replicated=self.replicated)
        return pb.Response(send_ack=ack)


async def say(browser: Driven, page: str, *texts: str) -> None:
    for text in texts:
        await browser.run(
            page,
            f"document.getElementById('text').value = {text!r};"
            "document.getElementById('send').requestSubmit()",
        )


ROWS = (
    "[...document.querySelectorAll('#messages li')]"
    ".map(li => [li.firstChild.textContent, li.querySelector('small').firstChild.textContent])"
)


def press(what: str) -> str:
    buttons = "[...document.querySelectorAll('#messages button')]"
    return f"{buttons}.find(e => e.textContent === '{what}').click()"


async def test_what_is_refused_is_shown_until_the_user_decides(
    chromium: str, tmp_path: Path
) -> None:
    async with scripted(tmp_path) as pages, Driven(chromium, tmp_path / "profile") as browser:
        outbox = Outbox(pages)
        outbox.refuse["bad"] = pb.Error(code="blocked", message="bob has blocked you")
        outbox.refuse["worse"] = pb.Error(code="encrypted_only", message="encrypt it")
        page = await opened(browser, pages)
        await say(browser, page, "bad", "good", "worse")
        bad = ["bad", "not sent: blocked: bob has blocked you "]
        worse = ["worse", "not sent: encrypted_only: encrypt it "]
        await browser.until(page, f"JSON.stringify({ROWS}) === JSON.stringify({[bad, worse]})")
        assert [content for _, _, content in outbox.taken] == ["good"]

        await browser.run(page, "window.old = true")
        await browser.reload(page)
        named = (
            "!window.old && "
            "document.querySelector('#list button')?.textContent === 'bob (2 not sent)'"
        )
        await browser.until(page, named)
        await browser.run(page, "document.querySelector('#list button').click()")
        assert await browser.run(page, ROWS) == [bad, worse]
        outbox.refuse.clear()
        await browser.until(page, f"{STATE}.startsWith('connected')")
        assert outbox.offered == ["bad", "good", "worse"]
        await browser.run(page, press("Send again"))
        await browser.until(page, f"JSON.stringify({ROWS}) === JSON.stringify({[worse]})")
        await browser.run(page, press("Dismiss"))
        await browser.until(page, f"{ROWS}.length === 0")
        assert [content for _, _, content in outbox.taken] == ["good", "bad"]


async def test_what_may_go_well_later_is_offered_again(chromium: str, tmp_path: Path) -> None:
    """The errors name no time."""
    async with scripted(tmp_path) as pages, Driven(chromium, tmp_path / "profile") as browser:
        outbox = Outbox(pages)
        page = await opened(browser, pages)
        for code in ("unavailable", "deadline", "internal"):
            outbox.refuse["m"] = pb.Error(code=code, message="not now")
            await say(browser, page, "m")
            outbox.offered.clear()
            await until(lambda: len(outbox.offered) >= 2)
            assert await browser.run(page, ROWS) == [["m", "sending"]]
            outbox.refuse.clear()
            await browser.until(page, f"{ROWS}.length === 0")
        assert [content for _, _, content in outbox.taken] == ["m"] * 3


async def test_what_stands_behind_a_refused_message_is_sent(chromium: str, tmp_path: Path) -> None:
    """The IDC goes on wanting its cid, since the first message holds the floor below it."""
    async with scripted(tmp_path) as pages, Driven(chromium, tmp_path / "profile") as browser:
        outbox = Outbox(pages)
        outbox.replicated = False
        outbox.refuse["bad"] = pb.Error(code="forbidden", message="no")
        page = await opened(browser, pages)
        await say(browser, page, "first", "bad", "next", "last")
        await until(lambda: len(outbox.taken) >= 3)
        old, new = outbox.taken[0][0], outbox.taken[1][0]
        assert outbox.taken == [(old, 1, "first"), (new, 1, "next"), (new, 2, "last")]
        assert old != new
        rows = "first bad next last"
        await browser.until(page, f"{ROWS}.map(row => row[0]).join(' ') === '{rows}'")

        # Under the same keys on the next connection, as another IDC would have to know them.
        await pages.close("shutdown")
        offered = len(outbox.offered)
        await until(lambda: len(outbox.offered) >= offered + 3)
        assert outbox.offered[offered:] == ["first", "next", "last"]
        assert len(outbox.taken) == 3


async def test_a_cid_that_was_used_for_something_else_costs_no_message(
    chromium: str, tmp_path: Path
) -> None:
    async with scripted(tmp_path) as pages, Driven(chromium, tmp_path / "profile") as browser:
        outbox = Outbox(pages)
        accept = pages.answers["send"]
        conflict = pb.Response(error=pb.Error(code="cid_conflict", message="other content"))
        first: list[str] = []

        def send(request: pb.Request) -> pb.Response:
            first.append(request.send.outbox)
            return conflict if request.send.outbox == first[0] else accept(request)

        pages.answers["send"] = send
        page = await opened(browser, pages)
        await say(browser, page, "one", "two")
        await until(lambda: len(outbox.taken) >= 2)
        assert [(cid, content) for _, cid, content in outbox.taken] == [(1, "one"), (2, "two")]


async def test_one_tab_at_a_time_has_the_outbox(chromium: str, tmp_path: Path) -> None:
    async with scripted(tmp_path) as pages, Driven(chromium, tmp_path / "profile") as browser:
        outbox = Outbox(pages)
        later = pb.Error(code="unavailable", message="not now", retry_after_ms=200)
        outbox.refuse = {"one": later, "two": later, "three": later}
        first = await opened(browser, pages)
        await say(browser, first, "one")
        second = await browser.open(pages.url)
        elsewhere = f"{STATE} === 'open in another tab'"
        await browser.until(second, elsewhere)
        assert pages.connects == 1

        take = "document.getElementById('take').click()"
        for taker, other, text in ((second, first, "two"), (first, second, "three")):
            await browser.run(taker, take)
            await browser.until(taker, f"{STATE}.startsWith('connected')")
            await browser.until(other, elsewhere)
            await say(
                browser, other, "nothing"
            )  # its input field is locked; whoever asks all the same
            why = "document.getElementById('why').textContent"
            assert await browser.run(other, why) == "This device is open in another tab."
            assert await browser.run(other, "document.getElementById('text').disabled")
            await browser.until(taker, "document.querySelector('#list button') !== null")
            await browser.run(taker, "document.querySelector('#list button').click()")
            await say(browser, taker, text)
        assert pages.connects == 3
        outbox.refuse.clear()
        await until(lambda: len(outbox.taken) >= 3)
        assert [taken[1:] for taken in outbox.taken] == [(1, "one"), (2, "two"), (3, "three")]
        assert len({outbox_id for outbox_id, _, _ in outbox.taken}) == 1

        await browser.run(first, "location.href = 'about:blank'")
        await browser.run(second, take)  # nobody has to be asked
        await browser.until(second, f"{STATE}.startsWith('connected')")


EAST = pb.Origin(idc="east", incarnation=1)
WEST = pb.Origin(idc="west", incarnation=1)
FIRST = pb.ClientKey(uid="bob", device="phone", outbox="o", conversation=PAIR, cid=1)
SECOND = pb.ClientKey(uid="bob", device="phone", outbox="o", conversation=PAIR, cid=2)


def message(origin: pb.Origin, seq: int, key: pb.ClientKey, text: str) -> pb.Entry:
    place = pb.Place(hlc=key.cid, origin=EAST, seq=key.cid)
    placed = pb.Attested(key=key, origin=origin, seq=seq, place=place)
    entry = pb.MessageEntry(placed=placed, content=text.encode(), composed_ms=1)
    return pb.Entry(origin=origin, seq=seq, hlc=seq, message=entry)


def edit(origin: pb.Origin, seq: int, text: str) -> pb.Entry:
    order = pb.Order(hlc=seq, device="phone", number=seq)
    change = pb.ChangeEntry(key=FIRST, actor="bob", order=order, edit=text.encode())
    return pb.Entry(origin=origin, seq=seq, hlc=seq, change=change)


async def test_what_stood_above_a_seal_is_forgotten(chromium: str, tmp_path: Path) -> None:
    """An IDC is lost with an edit that the page was shown, and that no other IDC has."""
    async with scripted(tmp_path) as pages, Driven(chromium, tmp_path / "profile") as browser:
        idcs: dict[str, tuple[dict[str, int], pb.PullOk]] = {
            "east": (
                {"east": 4},
                pb.PullOk(
                    entries=[
                        message(EAST, 1, FIRST, "as it was sent"),
                        edit(EAST, 2, "an edit that is kept"),
                        message(EAST, 3, SECOND, "published again"),
                        edit(EAST, 4, "an edit that is lost"),
                    ]
                ),
            ),
            "west": (
                {"east": 2},
                pb.PullOk(
                    entries=[message(WEST, 1, SECOND, "published again")],
                    suspended=[pb.SuspendedOrigin(origin=EAST, end=2, sealed=True)],
                ),
            ),
        }
        pulls: list[dict[str, int]] = []

        def sync(request: pb.Request) -> pb.Response:
            heads = [
                pb.Position(origin=pb.Origin(idc=idc, incarnation=1), seq=seq)
                for idc, seq in idcs[pages.idc][0].items()
            ]
            row = pb.ConversationHeads(conversation=PAIR, heads=heads)
            return pb.Response(sync_ok=pb.SyncOk(conversations=[row], token=b"t"))

        def pull(request: pb.Request) -> pb.Response:
            pulls.append({each.origin.idc: each.seq for each in request.pull.have})
            return pb.Response(pull_ok=idcs[pages.idc][1])

        pages.answers.update(sync=sync, pull=pull)
        page = await opened(browser, pages)
        shown = f"{ROWS}.map(row => row[0]).join(', ')"
        await browser.until(page, f"{shown} === 'an edit that is lost, published again'")

        pages.idc = "west"
        await pages.close("shutdown")
        await browser.until(page, f"{shown} === 'an edit that is kept, published again'")
        # What still comes of it, late, counts for nothing; what comes after it elsewhere does.
        third = pb.ClientKey(uid="bob", device="phone", outbox="o", conversation=PAIR, cid=3)
        late = [edit(EAST, 3, "late"), message(WEST, 2, third, "next")]
        await pages.tell(pb.Event(push=pb.Push(conversation=PAIR, entries=late)))
        await browser.until(page, f"{shown} === 'an edit that is kept, published again, next'")
        await pages.tell(pb.Event(signal=pb.Signal(conversation=PAIR)))
        await until(lambda: len(pulls) >= 3)
        assert pulls == [{}, {"east": 4}, {"east": 2, "west": 2}]
