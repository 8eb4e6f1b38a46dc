"""A route instance: between the core of an IDC and those of its fronts that link to it.

The core says once what is for users of many fronts; here it is looked up at which of them each one
is, and every front gets one message for all of its users. What is for one front passes through, in
order with the rest. So the link of a front is here what it is at the core: in order and complete,
or at an end, upon which the front links anew and catches up. A route instance keeps nothing: when
it loses its core, or ends, all its fronts' links end.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Sequence

import grpc

from imcore.errors import Unavailable
from imcore.proto import client_pb2 as pb
from imcore.proto import front_pb2 as front
from imcore.proto import front_pb2_grpc as rpc
from imcore.tls import caller_name
from services.ports import Audience
from services.split.audiences import Named
from services.split.fronts import Context
from services.split.links import FrontLink, here_of, up_batches
from services.split.pipe import Pipe
from services.split.where import Where

log = logging.getLogger("im.split")

AGAIN_S = 0.1
NO_CORE = "this route instance has no link to its core"


class Route(rpc.FrontServicer):
    """``name``: of this life of it. ``stub``: of the core. ``fronts``: those that are linked."""

    def __init__(self, idc: str, name: str, stub: rpc.FrontAsyncStub) -> None:
        self.name = name
        self.linked = asyncio.Event()  # and the core has answered
        self.fronts: dict[int, FrontLink] = {}
        self._idc = idc
        self._stub = stub
        self._stamp = pb.Stamp()  # the highest that the core has given out
        self._up: Pipe[front.Up] = Pipe()
        self._up.close()
        self._where: Where[FrontLink] = Where()
        self._named = Named()
        self._last_front = 0

    # -------------------------------------------------------------------------- to the core

    async def run(self) -> None:
        """Links to the core, again and again, until cancelled."""
        said = ""
        while True:
            try:
                await self._link()
                why = "the core closed it"
            except grpc.aio.AioRpcError as error:
                why = str(error.details())
            except Unavailable as error:
                why = str(error)
            finally:
                was = self.linked.is_set()
                self._lost()
            if was or why != said:
                log.warning("no link to the core: %s", why)
            said = why
            await asyncio.sleep(AGAIN_S)

    async def _link(self) -> None:
        pipe = self._up = Pipe()
        pipe.put(front.Up(hello=front.Hello(route=self.name)))
        call = self._stub.Link(up_batches(pipe), wait_for_ready=False)
        try:
            async for batch in call:
                if batch.stamp.hlc > self._stamp.hlc:
                    self._stamp = batch.stamp
                for item in batch.items:
                    self._down(item, item.WhichOneof("body") or "")
        finally:
            pipe.close()
            call.cancel()

    def _lost(self) -> None:
        self.linked.clear()
        self._up.close()
        fronts, self.fronts = self.fronts, {}
        for link in fronts.values():
            link.pipe.close()
        self._where = Where()
        self._named = Named()

    def _down(self, item: front.Down, kind: str) -> None:
        if item.front:
            self._down_to(self.fronts.get(item.front), item, kind)
        elif kind == "tell":
            self.linked.set()
        elif kind == "audience":
            self._named.told(item.audience)
        elif kind == "replicated":
            for link in self.fronts.values():
                link.pipe.put(item)
        elif kind == "behind":
            self._behind(item.behind)
        elif kind == "push" and item.push.audience:
            self._push_group(item.push)
        else:
            self._to_users(item, kind)

    def _down_to(self, link: FrontLink | None, item: front.Down, kind: str) -> None:
        if link is None:
            return  # its link has ended, and the core has not heard of it yet
        if kind == "left":
            link.pipe.close()
        else:
            link.pipe.put(item)

    def _to_users(self, item: front.Down, kind: str) -> None:
        uids: Sequence[str] = [item.cursor.uid] if kind == "cursor" else getattr(item, kind).uids
        for link, here in self._where.of(uids).items():
            link.pipe.put(item if len(here) == len(uids) else _for_some(item, kind, here))

    def _push_group(self, push: front.PushEntries) -> None:
        audience = self._named.of(push.audience)
        for link in self.fronts.values():
            if number := link.audiences.number(audience):
                theirs = front.PushEntries()
                theirs.CopyFrom(push)
                theirs.audience = number
                link.pipe.put(front.Down(push=theirs))

    def _behind(self, told: front.BehindGroups) -> None:
        named: list[tuple[front.BehindGroup, Audience]] = [
            (group, self._named.of(group.audience)) for group in told.groups
        ]
        for link in self.fronts.values():
            theirs = front.BehindGroups(within_ms=told.within_ms)
            for group, audience in named:
                if number := link.audiences.number(audience):
                    theirs.groups.add(audience=number, heads=group.heads)
            if theirs.groups:
                link.pipe.put(front.Down(behind=theirs))

    # ------------------------------------------------------------------------- to the fronts

    async def Link(
        self, request_iterator: AsyncIterator[front.UpBatch], context: Context
    ) -> AsyncIterator[front.DownBatch]:
        if (name := caller_name(context)) != self._idc:
            why = f"a front of {self._idc} shows the certificate of {self._idc}, not of {name}"
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, why)
        if not self.linked.is_set():
            await context.abort(grpc.StatusCode.UNAVAILABLE, NO_CORE)
        first = await anext(aiter(request_iterator), None)
        if first is None or not first.items or not first.items[0].hello.gateway:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "a front begins with a hello")
        assert first is not None
        pipe = Pipe[front.Down]()
        link = self._add(first.items[0].hello, pipe)
        reading = asyncio.ensure_future(self._read(link, first, request_iterator))
        try:
            async for items in pipe.batches():
                yield front.DownBatch(items=items, stamp=self._stamp)
            reading.cancel()  # or it would be told of the end as of an error
            if link.number not in self.fronts:
                await context.abort(grpc.StatusCode.UNAVAILABLE, NO_CORE)
        finally:
            reading.cancel()
            self._remove(link)

    def _add(self, hello: front.Hello, pipe: Pipe[front.Down]) -> FrontLink:
        self._last_front += 1
        link = FrontLink(hello, pipe, number=self._last_front)
        if self.linked.is_set():
            self.fronts[link.number] = link
            log.info("the front %s is linked", link.name)
        else:
            pipe.close()
        return link

    def _remove(self, link: FrontLink) -> None:
        link.pipe.close()
        if self.fronts.pop(link.number, None) is None:
            return
        self._where.gone(link, link.devices)
        self._up.put(front.Up(front=link.number, left=True))
        why = ": it did not read" if link.pipe.overflowed else ""
        log.warning("the link of the front %s ended%s", link.name, why)

    async def _read(
        self, link: FrontLink, first: front.UpBatch, batches: AsyncIterator[front.UpBatch]
    ) -> None:
        try:
            self._take(link, first.items)
            async for batch in batches:
                self._take(link, batch.items)
        except Exception:
            log.exception("what the front %s says cannot be taken", link.name)
        finally:
            link.pipe.close()

    def _take(self, link: FrontLink, items: Sequence[front.Up]) -> None:
        for item in items:
            if link.number not in self.fronts:
                return  # nor is the pipe to the core the one that it was added to
            if item.HasField("session"):
                row = here_of(link, item.session)
                link.change(row, item.session.over)
                self._where.note(row.uid, link, link.has(row.uid))
            item.front = link.number
            self._up.put(item)


def _for_some(item: front.Down, kind: str, uids: Sequence[str]) -> front.Down:
    """The same, for some of its users."""
    some = front.Down()
    some.CopyFrom(item)
    body = getattr(some, kind)
    del body.uids[:]
    body.uids.extend(uids)
    return some
