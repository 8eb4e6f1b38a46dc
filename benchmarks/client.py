"""A lean client for load: frames in and out, callbacks, nothing that a benchmark does not need.

It keeps no outbox, pulls nothing and never reconnects, so what a gateway drops is missing in the
history, and the check of the history says so.
"""

from __future__ import annotations

import asyncio
import ssl
from bisect import insort
from collections.abc import Callable
from typing import cast

from imcore import frame
from imcore.proto import client_pb2 as pb

OnShown = Callable[["Client", pb.MessageEntry, str, int], None]  # conversation, index in the view
OnAnswer = Callable[[pb.Response], None]
_Place = tuple[int, str, int, int]


class Client(asyncio.Protocol):
    """``number``: its device in the history. Sends of one loop turn go out in one write."""

    def __init__(self, number: int, uid: str, device: str, on_shown: OnShown) -> None:
        self.number = number
        self.uid = uid
        self.device = device
        self.ok = pb.ConnectOk()
        self.views: dict[str, list[_Place]] = {}
        self.lost: str | None = None
        self.next_cid = 1
        self.unacked: dict[int, None] = {}  # cids, ascending
        self._refused: dict[int, Callable[[], None]] = {}  # by cid: sends it again
        self._again_at = 0.0
        self._seen = pb.Stamp()
        self._heads: dict[str, dict[tuple[str, int], int]] = {}
        self._dirty: dict[str, None] = {}  # conversations with pushes to ack
        self._on_shown = on_shown
        self._loop = asyncio.get_running_loop()
        self._spoken = self._loop.create_future()
        self._preface = b""
        self._decoder = frame.FrameDecoder()
        self._answers: dict[int, OnAnswer] = {}
        self._last_id = 0
        self._out: list[bytes] = []
        self._transport: asyncio.Transport

    # ----------------------------------------------------------------------------- connection

    async def connect(
        self, host: str, port: int, context: ssl.SSLContext | None, token: bytes
    ) -> None:
        await self._loop.create_connection(lambda: self, host, port, ssl=context)
        self._transport.write(frame.client_preface())
        await self._spoken
        answer = await self.ask(
            pb.Request(connect=pb.Connect(token=token, connection_epoch=1, client="benchmark/1"))
        )
        self.ok = answer.connect_ok

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are no subclass

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = self.lost or str(exc or "closed by the gateway")
        if not self._spoken.done():
            self._spoken.set_exception(ConnectionError(self.lost))

    def close(self) -> None:
        self._transport.abort()

    # ------------------------------------------------------------------------------- requests

    def call(self, request: pb.Request, on_answer: OnAnswer) -> None:
        self._last_id += 1
        self._answers[self._last_id] = on_answer
        if self._seen.hlc:
            request.seen.CopyFrom(self._seen)
        if not self._out:
            self._loop.call_soon(self._flush)
        self._out.append(frame.encode(frame.REQUEST, self._last_id, request.SerializeToString()))

    async def ask(self, request: pb.Request) -> pb.Response:
        """Raises ConnectionError for an answer that is an error."""
        future: asyncio.Future[pb.Response] = self._loop.create_future()
        self.call(request, future.set_result)
        async with asyncio.timeout(15):
            response = await future
        if response.HasField("error"):
            raise ConnectionError(f"{response.error.code}: {response.error.message}")
        return response

    def again(self, cid: int, send: Callable[[], None], wait_s: float) -> None:
        """Later, with all others that were refused and in their order: behind one that is not
        taken none is."""
        self._refused[cid] = send
        self._again_at = max(self._again_at, self._loop.time() + wait_s)
        if len(self._refused) == 1:
            self._loop.call_at(self._again_at, self._offer)

    def is_refused(self) -> bool:
        return bool(self._refused)

    def _offer(self) -> None:
        if self._loop.time() < self._again_at:
            self._loop.call_at(self._again_at, self._offer)
            return
        refused, self._refused = self._refused, {}
        for cid in sorted(refused):
            refused[cid]()

    def ack_pushes(self) -> bool:
        """What an SDK does once a second; False: there is nothing to ack."""
        if not self._dirty:
            return False
        request = pb.Request()
        for name in self._dirty:
            ack = request.heartbeat.acks.add(conversation=name)
            for (idc, incarnation), seq in self._heads[name].items():
                head = ack.heads.add(seq=seq)
                head.origin.idc, head.origin.incarnation = idc, incarnation
        self._dirty.clear()
        self.call(request, lambda _: None)
        return True

    def heartbeat(self) -> None:
        request = pb.Request()
        request.heartbeat.SetInParent()
        self.call(request, lambda _: None)

    def _flush(self) -> None:
        out, self._out = self._out, []
        if self.lost is None:
            self._transport.write(b"".join(out))

    # ------------------------------------------------------------------------------ receiving

    def data_received(self, data: bytes) -> None:
        if not self._spoken.done():
            self._preface += data
            if len(self._preface) < frame.SERVER_PREFACE_BYTES:
                return
            data = self._preface[frame.SERVER_PREFACE_BYTES :]
            self._spoken.set_result(None)
        for kind, id_, body in self._decoder.feed(data):
            if kind == frame.EVENT:
                self._event(pb.Event.FromString(body))
            else:
                response = pb.Response.FromString(body)
                self._seen = response.stamp
                self._answers.pop(id_)(response)

    def _event(self, event: pb.Event) -> None:
        if event.HasField("push"):
            for entry in event.push.entries:
                self._entry(event.push.conversation, entry)
        elif event.HasField("close"):
            self.lost = f"closed by the gateway: {event.close.reason}"

    def _entry(self, conversation: str, entry: pb.Entry) -> None:
        """A push that does not continue what is here is not taken: it counts as missing."""
        heads = self._heads.setdefault(conversation, {})
        origin = (entry.origin.idc, entry.origin.incarnation)
        if entry.seq != heads.get(origin, 0) + 1:
            return
        heads[origin] = entry.seq
        self._dirty[conversation] = None
        if not entry.HasField("message"):
            return
        if entry.message.alias:
            return
        view = self.views.setdefault(conversation, [])
        at = entry.message.placed.place
        place = (at.hlc, at.origin.idc, at.origin.incarnation, at.seq)
        if not view or place > view[-1]:
            index = len(view)
            view.append(place)
        else:
            insort(view, place)
            index = view.index(place)
        self._on_shown(self, entry.message, conversation, index)
