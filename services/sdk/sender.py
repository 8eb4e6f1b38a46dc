"""Drives the outbox: store first, then offers, answers, and what the application waits for."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable
from functools import partial

from imcore.convert import origin_of
from imcore.errors import Code
from imcore.proto import client_pb2 as pb
from imcore.sometimes import REFILLED, sometimes
from imcore.words import Origin
from services.sdk.core.outbox import Change, Entry, Lane, Outbox
from services.sdk.core.view import View
from services.sdk.core.waits import RETRY_MS, again_s
from services.sdk.errors import SdkError, SendFailed
from services.sdk.session import Session
from services.sdk.store import Store
from services.sdk.traces import Trace

log = logging.getLogger("im.sdk")

LAG_RETRY_MS_MAX = 1_600
STORE_RETRY_MS = 1_000  # after a failed write: a full disk, a locked file
_LATER = {
    Code.OVERLOADED, Code.UNAVAILABLE, Code.DEADLINE, Code.INTERNAL, Code.UNAUTHENTICATED,
    Code.NOT_REPLICATED,
}  # fmt: skip

# Also said by an IDC that has not heard of the group, or of this member, yet.
MAY_LAG = {Code.FORBIDDEN, Code.NOT_FOUND}


class Sender:
    """``shown(entry)`` is called when a message is stored, before the sender is told."""

    def __init__(
        self,
        outbox: Outbox,
        store: Store,
        in_flight_max: int,
        view: Callable[[str], View],
        on_stored: Callable[[Entry], None],
        lag_wait_ms: int,
        rng: random.Random,
    ) -> None:
        self._rng = rng
        self.outbox = outbox
        self._store = store
        self._in_flight_max = in_flight_max
        self._view = view
        self._on_stored = on_stored
        self._lag_s = lag_wait_ms / 1000
        self._lag_until = 0.0
        self._session: Session | None = None
        self._paused = False
        self._write_due = False
        self._closed = False
        self._until_written: list[asyncio.Future[None]] = []
        self._traces: dict[Entry, Trace] = {}  # of messages that are followed and not acked
        self._waiting: dict[Entry, asyncio.Future[pb.SendAck]] = {}
        self._until_safe: dict[Entry, asyncio.Future[None]] = {}
        # Acked messages that this IDC refuses: since when and how often, and what was reported.
        self._lagging: dict[Entry, tuple[float, int]] = {}
        self._unsafe: dict[Entry, SendFailed] = {}
        self._landed = asyncio.Event()
        self._moved_from: dict[tuple[Origin, int], int] = {}

    # -------------------------------------------------------------------------- composing

    def send(
        self,
        conversation: str,
        content: bytes,
        composed_ms: int,
        durability: int,
        trace: Trace | None = None,
        refs: bytes = b"",
        encrypted: bool = False,
    ) -> tuple[Entry, asyncio.Future[pb.SendAck]]:
        """The future is done when the message is stored, or fails with SendFailed. Raises
        OutboxFull."""
        entry = self.outbox.compose(conversation, content, composed_ms, durability, refs, encrypted)
        future: asyncio.Future[pb.SendAck] = asyncio.get_running_loop().create_future()
        self._waiting[entry] = future
        if trace is not None:
            self._traces[entry] = trace
        self._write()
        return entry, future

    def until_replicated(self, entry: Entry) -> asyncio.Future[None]:
        """Fails with SendFailed when the IDC goes on refusing the acked message."""
        future = self._until_safe.get(entry)
        if future is None or future.cancelled():
            future = asyncio.get_running_loop().create_future()
            self._until_safe[entry] = future
            if entry.replicated:
                self._safe((entry,))
            elif entry in self._unsafe:
                self._report(entry, self._unsafe[entry])
        return future

    def put_row(self, name: str) -> None:
        self.outbox.put_row(name)
        self._write()

    async def written(self) -> None:
        """Until all that has changed by now is stored. Raises SdkError: it cannot be now."""
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._until_written.append(future)
        self._write()
        await future

    def _write(self) -> None:
        if not self._write_due and not self._closed:
            self._write_due = True
            asyncio.get_running_loop().call_soon(self._write_now)

    def _write_now(self) -> None:
        self._write_due = False
        changes, entries = self.outbox.take_batch()
        waiting, self._until_written = self._until_written, []
        if changes or waiting:  # what they wait for may be on its way: batches come in order
            self._store.write(changes, partial(self._written, changes, entries, waiting))

    def _written(
        self,
        changes: list[Change],
        entries: list[Entry],
        waiting: list[asyncio.Future[None]],
        error: Exception | None,
    ) -> None:
        for future in waiting:
            if not future.done():
                if error is None:
                    future.set_result(None)
                else:
                    future.set_exception(error)
        if error is None:
            self.outbox.written(entries)
        else:
            log.error("%s", error)
            self.outbox.unwritable(entries)
            for entry in entries:
                self._fail(entry, SendFailed("outbox_unwritable", str(error)))
            # What else was in the batch is no less true: places, and what is out of the outbox.
            self.outbox.unwritten(changes)
            asyncio.get_running_loop().call_later(STORE_RETRY_MS / 1000, self._write)
        self.pump()

    def flush(self) -> None:
        """Hand what is not written yet to the store now (before it is closed)."""
        self._closed = True
        self._write_now()

    # --------------------------------------------------------------------------- offering

    def connected(self, session: Session) -> None:
        """Everything in the outbox is offered again on this connection."""
        self._session = session
        self._lagging.clear()
        self._unsafe.clear()
        self._paused = False
        self._moved_from.clear()
        self.outbox.connected()
        self._write()
        self.pump()

    def moved(self) -> None:
        """Another IDC than before serves now: what it refuses it may only not have heard of."""
        self._lag_until = asyncio.get_running_loop().time() + self._lag_s

    @property
    def may_lag(self) -> bool:
        return asyncio.get_running_loop().time() < self._lag_until

    def disconnected(self) -> None:
        self._session = None
        self.outbox.disconnected()
        self._landed.set()
        self._write()  # a lane that was closing may have been given up

    async def drain(self, timeout_s: float) -> None:
        """Offer nothing new until ``connected`` or ``resume``; wait for answers, bounded."""
        self._paused = True
        try:
            async with asyncio.timeout(timeout_s):
                while self.outbox.in_flight and self._session is not None:
                    self._landed.clear()
                    await self._landed.wait()
        except TimeoutError:
            log.info("%d sends were not answered before the move", self.outbox.in_flight)

    def resume(self) -> None:
        self._paused = False
        self.pump()

    def moved_from(self) -> list[pb.MovedFrom]:
        """How far the logs reach that this connection's acks were written to."""
        return [
            pb.MovedFrom(
                origin=pb.Origin(idc=origin.idc, incarnation=origin.incarnation),
                partition=partition,
                lsn=lsn,
            )
            for (origin, partition), lsn in self._moved_from.items()
        ]

    def pump(self) -> None:
        """Send what may be sent now."""
        session = self._session
        if session is None or self._paused:
            return
        for entry in self.outbox.offers(self._in_flight_max):
            lane = entry.lane
            claims = self._view(lane.conversation).claims()
            request = pb.Request()
            if self._traces and (trace := self._traces.get(entry)) is not None:
                request.trace.CopyFrom(trace.context)
            send = request.send
            send.conversation = lane.conversation
            send.outbox = lane.outbox
            send.cid = entry.cid
            send.floor = lane.floor()
            send.content = entry.content
            send.refs = entry.refs
            send.encrypted = entry.encrypted
            send.durability = entry.durability  # type: ignore[assignment]
            send.composed_ms = entry.composed_ms
            if entry.placed is not None:
                send.placed.CopyFrom(entry.placed)
            if claims:
                send.claims.extend(claims)
            try:
                session.call(request, partial(self._answer, session, entry, claims))
            except ValueError as error:  # written by a release that let it in: it can never go
                self._refuse(entry, SendFailed(Code.TOO_LARGE, str(error)))

    # ---------------------------------------------------------------------------- answers

    def _answer(
        self,
        session: Session,
        entry: Entry,
        claims: list[pb.Attested],
        response: pb.Response | None,
    ) -> None:
        if session is not self._session or response is None:
            return  # offered again on the next connection
        if response.HasField("error"):
            self._error(entry, response.error)
        else:
            self._ack(session, entry, claims, response.send_ack)
        self._write()
        self.pump()
        if not self.outbox.in_flight:
            self._landed.set()

    def _ack(
        self, session: Session, entry: Entry, claims: list[pb.Attested], ack: pb.SendAck
    ) -> None:
        if entry.placed is not None and ack.outcome == pb.SendAck.ACCEPTED:
            sometimes(REFILLED)
        answer = self.outbox.answered(entry, ack, session.origin)
        if ack.outcome != pb.SendAck.WANT and ack.lsn:
            where = (origin_of(ack.placed.origin), ack.partition)
            self._moved_from[where] = max(ack.lsn, self._moved_from.get(where, 0))
        if ack.outcome != pb.SendAck.WANT:
            self._lagging.pop(entry, None)
            self._unsafe.pop(entry, None)
        if ack.outcome == pb.SendAck.ACCEPTED and claims:
            self._view(entry.lane.conversation).claimed(claims)
        if answer.acked:
            self._on_stored(entry)
        if self._traces and entry.placed is not None:
            self._end_trace(entry)
        future = self._waiting.pop(entry, None) if entry.placed is not None else None
        if future is not None and not future.done():
            future.set_result(ack)
        self._safe(answer.replicated)
        if answer.hold:
            self._release_later(entry.lane, RETRY_MS / 1000)

    def _error(self, entry: Entry, error: pb.Error) -> None:
        if error.code in _LATER:
            if error.code == Code.NOT_REPLICATED:
                self._fail(entry, SendFailed(error.code, error.message, pending=True))
            self.outbox.delayed(entry)
            self._release_later(entry.lane, again_s(error, self._rng))
        elif error.code == Code.CID_CONFLICT:
            log.warning("the outbox was used elsewhere; it goes on under a new id")
            self.outbox.conflict(entry)
        elif error.code in MAY_LAG and (again_ms := self._lags(entry)):
            self.outbox.delayed(entry, judged=True)
            self._release_later(entry.lane, again_ms / 1000)
        else:
            self._refuse(entry, SendFailed(error.code, error.message))

    def _lags(self, entry: Entry) -> int:
        """After how many ms to ask again; 0: the IDC has had the time to hear of the group. One
        that took the message over from a lost IDC may hear of it only from other outboxes."""
        now = asyncio.get_running_loop().time()
        since, tries = self._lagging.get(entry, (now, 0))
        self._lagging[entry] = (since, tries + 1)
        until = since + self._lag_s if entry.placed is not None else self._lag_until
        return min(RETRY_MS << min(tries, 8), LAG_RETRY_MS_MAX) if now < until else 0

    def _refuse(self, entry: Entry, error: SendFailed) -> None:
        if self.outbox.refused(entry):
            self._lagging.pop(entry, None)
            self._fail(entry, error)
        elif entry.placed is not None and not entry.replicated:
            # Kept and offered again with every connect: the IDC that took it may come back.
            if entry not in self._unsafe:
                log.warning("an acked message of %s is refused: %s", entry.lane.conversation, error)
            self._unsafe[entry] = failed = SendFailed(error.code, str(error), pending=True)
            self._report(entry, failed)
        self._write()
        asyncio.get_running_loop().call_soon(self.pump)  # what stood behind it

    def _report(self, entry: Entry, error: SendFailed) -> None:
        future = self._until_safe.pop(entry, None)
        if future is not None and not future.done():
            future.set_exception(error)

    def _release_later(self, lane: Lane, after_s: float) -> None:
        asyncio.get_running_loop().call_later(after_s, self._release, lane)

    def _release(self, lane: Lane) -> None:
        self.outbox.release(lane)
        self.pump()

    def _end_trace(self, entry: Entry, problem: str = "") -> None:
        trace = self._traces.pop(entry, None)
        if trace is not None:
            trace.end(problem)

    def _fail(self, entry: Entry, error: SdkError) -> None:
        self._end_trace(entry, str(error))
        future = self._waiting.pop(entry, None)
        if future is not None and not future.done():
            future.set_exception(error)

    # ------------------------------------------------------------------------ replication

    def replicated(self, event: pb.Replicated) -> None:
        self._safe(self.outbox.replicated(origin_of(event.origin), event.partition, event.lsn))
        self._write()
        self.pump()

    def _safe(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            self._lagging.pop(entry, None)
            self._unsafe.pop(entry, None)
            future = self._until_safe.pop(entry, None)
            if future is not None and not future.done():
                future.set_result(None)

    def fail_all(self, error: SendFailed) -> None:
        """The client stops: whoever waits is told."""
        for entry in list(self._waiting):
            self._fail(entry, error)
        for future in self._until_safe.values():
            future.cancel()
        self._until_safe.clear()
