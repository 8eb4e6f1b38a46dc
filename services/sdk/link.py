"""Keeps the client connected: where to, when again, and moving without a break."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import random
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Protocol

from imcore.proto import client_pb2 as pb
from imcore.runtime import Clock
from services.sdk.core import passage
from services.sdk.core.degrade import Degrade
from services.sdk.core.race import head_start_s, order
from services.sdk.core.reconnect import (
    FOR_GOOD,
    RETRY_AFTER_MAX_MS,
    Lost,
    Plan,
    Reconnect,
    Where,
)
from services.sdk.core.seen import Seen
from services.sdk.core.timing import Patience, Slowest
from services.sdk.errors import AuthError, Kicked, Replaced, SdkError, StoreFailed
from services.sdk.ipconf import Answer, Gateway, IpconfClient, Lookup, NoAnswer
from services.sdk.race import Dials
from services.sdk.session import OnEvent, Session, SessionLost
from services.sdk.transport import Dialer

if TYPE_CHECKING:
    from services.sdk.quic import QuicDialer

log = logging.getLogger("im.sdk")

_AVOID_S = 3.0  # a gateway that failed is the last to be tried for as long
LEAVE = {"moved", "drained"}  # a gateway's last word to a client that is to be elsewhere
_TRIES = 4  # gateways of one ipconf answer, before backing off


class Owner(Protocol):
    """The client, as the link sees it."""

    async def connect_request(self, gateway: Gateway) -> pb.Connect:
        """With a raised, durable connection epoch. Raises StoreFailed."""
        ...

    async def before_move(self) -> None:
        """No new sends; returns when those in flight are answered (bounded)."""
        ...

    def move_failed(self) -> None: ...

    def connected(self, session: Session) -> None: ...

    def disconnected(self, lost: Lost) -> Lost:
        """Returns how the connection ended, as the client sees it."""
        ...

    def unwritable(self, error: StoreFailed) -> None:
        """No connection can be made as long as its epoch cannot be stored; it is tried again."""
        ...

    def stopped(self, error: SdkError) -> None:
        """No reconnect will be tried."""
        ...


class Link:
    def __init__(
        self,
        owner: Owner,
        ipconf: IpconfClient,
        dialer: Dialer,
        seen: Seen,
        clock: Clock,
        rng: random.Random,
        lookup: Lookup,
        on_event: OnEvent,
        polling: Dialer | None,
        quic: Callable[[], QuicDialer] | None,
        network: tuple[str, str],
    ) -> None:
        """``polling``: by which it goes on when long connections do not last; None: it does not.
        ``quic``: makes what it dials by too where the service offers that."""
        self._owner = owner
        self._ipconf = ipconf
        self._dialer = dialer
        self._polling = polling
        self._degrade = Degrade()
        self._polled = False  # the last connection, or attempt at one
        self._make_quic = quic
        self._quic: QuicDialer | None = None
        self._passages = passage.Passages()
        self._network = network
        self._patience = Patience()
        self.slowest = Slowest()  # of the present kind of network
        self.by_quic = False  # the present connection, or the last one
        self._seen = seen
        self._clock = clock
        self._rng = rng
        self._lookup = lookup
        self._on_event = on_event
        self.reconnect = Reconnect(rng)
        self.answer: Answer | None = None
        self.session: Session | None = None
        self._last: Gateway | None = None
        self._avoid: dict[str, float] = {}
        self._dials = Dials(clock)
        self._took: dict[str, float] = {}  # gateways of the last answer: seconds until connected
        self._took_quic: dict[str, float] = {}
        self._move: pb.Move | None = None
        self._policy_epoch = 0  # the highest that any IDC has named
        self._refused_by: set[str] = set()  # IDCs that refused the token since it was last taken
        self._wake = asyncio.Event()
        self.trouble = ""  # why the last attempt failed
        self._raised = 0  # the connection epoch of the last attempt

    # ------------------------------------------------------------------------------- run

    async def run(self) -> None:
        """Until cancelled, replaced by another connection of this device, or not authorized."""
        plan, lost = Plan(Where.IPCONF, 0), Lost("no_answer")
        try:
            while plan.where is not Where.NOWHERE:
                await asyncio.sleep(plan.delay_ms / 1000)
                self._polled = self.dialer is self._polling
                self.by_quic = False
                lost = await self._round(plan.where)
                if self.by_quic:
                    self._passages.of(self._network).ended(lost, self._clock.now())
                else:
                    self._degrade.ended(self._polled, lost, self._clock.now())
                plan = self.reconnect.lost(lost)
                log.info("not connected (%s): %s in %d ms", lost.reason, *_words(plan))
            self._owner.stopped(_stop_of(lost))
        except AuthError as error:
            self._owner.stopped(error)

    @property
    def dialer(self) -> Dialer:
        """By which a gateway is dialled now."""
        if self._degrade.polling and self._polling is not None:
            return self._polling
        return self._dialer

    def _ways(self, polling: bool) -> list[Dialer]:
        """By which a gateway is dialled, the preferred one first."""
        if polling and self._polling is not None:
            return [self._polling]
        order = self.reconnect.parameters.transports
        passing = self._passages.of(self._network).open(self._clock.now())
        if self._make_quic is None or "quic" not in order or not passing:
            return [self._dialer]
        if self._quic is None:
            self._quic = self._make_quic()
        by: dict[str, Dialer] = {"quic": self._quic, "tcp": self._dialer}
        ways = [by[name] for name in order if name in by]
        return ways if self._dialer in ways else [*ways, self._dialer]

    def close(self) -> None:
        self._dials.close()
        if self.session is not None:
            self.session.call(pb.Request(bye=pb.Bye()), lambda _: None)
            self.session.close()

    async def gone(self) -> None:
        """After ``close``: until the goodbyes are said."""
        if self._quic is not None:
            await self._quic.gone()

    async def _round(self, where: Where) -> Lost:
        """Try some gateways; stay with the first that takes us, until that connection ends."""
        lost = Lost("no_answer")
        told = False  # by an ipconf: so there is a network
        self._patience.begins()
        candidates = [self._last] if where is Where.SAME and self._last else []
        if not candidates:
            try:
                candidates = self._candidates(await self._ask())
                told = True
            except AuthError:
                if self.answer is None:
                    raise
                lost = Lost("unauthenticated")  # unless a gateway takes it: clocks can be wrong
                candidates = self._candidates(self.answer)
            except NoAnswer as error:
                self.trouble = str(error)
                lost = Lost("no_answer", retry_after_ms=error.retry_after_ms)
                if self.answer is not None and not error.overloaded:  # better an old list than none
                    candidates = self._candidates(self.answer)
        while candidates:
            ways = self._ways(self._degrade.polling)
            session, lost = await self._dial_first(candidates, lost, ways)
            if session is None:
                break
            gateway = session.gateway
            candidates = [each for each in candidates if each is not gateway]
            try:
                await self._sign_in(session)
            except SessionLost as error:
                lost = error.lost
                self._failed(gateway, lost.reason)
                self._patience.failed(lost.reason)
                if lost.retry_after_ms or lost.reason in FOR_GOOD:
                    break
                continue
            except AuthError as error:
                self._refused(gateway, error)
                self._patience.failed("unauthenticated")
                lost = Lost("unauthenticated")
                continue
            except StoreFailed as error:
                self._owner.unwritable(error)
                return Lost("outbox")
            self._take(session)
            return await self._stay()
        if told:
            self._patience.in_vain()
        return lost

    def network(self, kind: str, name: str) -> None:
        """Where the device is from now on."""
        if kind != self._network[0]:
            self.slowest = Slowest()
        if (kind, name) != self._network:
            self._patience = Patience()
            self._degrade.changed_network(self._clock.now())
            if self._degrade.polling:
                self._wake.set()
        self._lookup = self._lookup._replace(network=kind)
        self._network = (kind, name)
        if self.session is not None:
            self.session.changed_network()

    def knows(self, policy_epoch: int) -> None:
        """Some IDC is at this policy: an ipconf's answer from before it is old."""
        self._policy_epoch = max(self._policy_epoch, policy_epoch)

    def _refused(self, gateway: Gateway, error: AuthError) -> None:
        """One IDC's clock may be wrong. Raises ``error`` when a second IDC has refused the token
        too, or there is no second one."""
        self._avoid[gateway.name] = self._clock.now() + _AVOID_S
        self._refused_by.add(gateway.idc)
        known = {g.idc for g in self.answer.gateways} if self.answer is not None else set()
        if len(self._refused_by) > 1 or not known - self._refused_by:
            raise error
        log.warning("%s does not take the token; another IDC is asked: %s", gateway.idc, error)

    async def _ask(self) -> Answer:
        last = self._last.name if self._last is not None else ""
        slowest = self.slowest
        answer = await self._ipconf.lookup(
            self._lookup._replace(
                last=last,
                policy_epoch_min=self._policy_epoch,
                connect_ms=slowest.connect_ms,
                heartbeat_ms=slowest.heartbeat_ms,
            )
        )
        if slowest is self.slowest:
            self.slowest = Slowest()
        self.answer = answer
        self.knows(answer.policy_epoch)
        self.reconnect.parameters = answer.parameters
        names = {gateway.name for gateway in answer.gateways}
        self._took = {name: took for name, took in self._took.items() if name in names}
        quic = self._took_quic.items()
        self._took_quic = {name: took for name, took in quic if name in names}
        return answer

    def _candidates(self, answer: Answer) -> list[Gateway]:
        now = self._clock.now()
        avoided = [self._avoid.get(gateway.name, 0.0) > now for gateway in answer.gateways]
        places = order([gateway.idc for gateway in answer.gateways], avoided)
        return [answer.gateways[place] for place in places[:_TRIES]]

    def _failed(self, gateway: Gateway, reason: str) -> None:
        self.trouble = f"{gateway.name} at {gateway.host}:{gateway.port}: {reason}"
        self._avoid[gateway.name] = self._clock.now() + _AVOID_S
        self._ipconf.report(self._lookup, gateway, reason)

    async def _dial_first(
        self, candidates: list[Gateway], lost: Lost, ways: list[Dialer], report: bool = True
    ) -> tuple[Session | None, Lost]:
        """The first that answers, if any does, and how the last one failed. Those that failed are
        no candidates any more; what QUIC alone fails at is no gateway's failure."""
        tried = [(gateway, way) for gateway in candidates for way in ways]
        network = self._network
        silent: set[str] = set()  # gateways that did not answer by QUIC
        session: Session | None = None

        def on_loss(index: int, error: SessionLost) -> None:
            nonlocal lost
            gateway, way = tried[index]
            if way is self._quic:
                if error.lost.reason in ("timeout", "protocol"):
                    silent.add(gateway.name)
                    judge()
                return
            lost = error.lost
            self._patience.failed(lost.reason)
            if report:
                self._failed(gateway, lost.reason)
            if gateway in candidates:
                candidates.remove(gateway)

        def judge() -> None:
            """Where TLS goes and QUIC does not, it is the network."""
            if session is not None and not session.quic and session.gateway.name in silent:
                log.info("no QUIC in this network for a while: %s", session.gateway.name)
                self._passages.of(network).blocked(self._clock.now())

        head_starts = []
        for (gateway, way), (after, _) in zip(tried, [*tried[1:], tried[-1]], strict=True):
            if way is self._quic and gateway is after:
                took = self._took_quic.get(gateway.name)
                head_starts.append(passage.head_start_s(took, gateway is tried[0][0]))
            else:
                took = self._took.get(gateway.name)
                head_starts.append(head_start_s(took, gateway.idc != after.idc))
        dials = [partial(self._dial, gateway, way) for gateway, way in tried]
        session = await self._dials.first(dials, head_starts, on_loss)
        judge()
        return session, lost

    async def _reach(self, gateway: Gateway, ways: list[Dialer]) -> Session:
        """Raises SessionLost."""
        session, lost = await self._dial_first([gateway], Lost("no_answer"), ways, report=False)
        if session is None:
            raise SessionLost(lost)
        return session

    async def _dial(self, gateway: Gateway, dialer: Dialer) -> Session:
        """Raises SessionLost."""
        session = Session(gateway, self._seen, self._clock, self._on_event)
        session.network = self._network
        await session.dial(dialer, self._timeout_s())
        took = self._took_quic if dialer is self._quic else self._took
        took[gateway.name] = session.took_s
        return session

    def _timeout_s(self) -> float:
        return self._patience.timeout_s(self.reconnect.parameters)

    async def _sign_in(self, session: Session) -> None:
        """Raises SessionLost, AuthError, StoreFailed."""
        try:
            connect = await self._owner.connect_request(session.gateway)
            await self._connect(session, connect)
        except BaseException:
            session.close()
            raise

    async def _connect(self, session: Session, connect: pb.Connect) -> None:
        session.epoch = self._raised = connect.connection_epoch
        await session.connect(connect, self._timeout_s())

    def _take(self, session: Session) -> None:
        self.session = session
        self._last = session.gateway
        self._polled = session.polling
        self.by_quic = session.quic
        # Neither polling nor QUIC says how long TCP and TLS take.
        if session.network == self._network and not (session.polling or session.quic):
            self.slowest.connected(session.took_s)
            self._patience.connected(session.took_s, self.reconnect.parameters)
        self._move = None  # of an earlier connection: this one may be where it led to
        self._refused_by.clear()
        self.knows(session.ok.policy_epoch)
        session.ended.add_done_callback(lambda _: self._wake.set())
        self._owner.connected(session)

    async def _stay(self) -> Lost:
        while True:
            session = self.session
            assert session is not None
            wait_s = self._degrade.back_at - self._clock.now() if session.polling else None
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._wake.wait()
            self._wake.clear()
            if session.ended.done():
                self.session = None
                lost = session.ended.result()
                if lost.reason == "replaced" and session.epoch < self._raised:
                    # By a later attempt of our own, whose answer was lost: nobody else has come.
                    lost = lost._replace(reason="lost")
                lost = self._owner.disconnected(lost)
                if lost.reason == "dead":
                    self._failed(session.gateway, lost.reason)
                elif lost.reason in LEAVE:
                    # No failure to report, but should ipconf not answer, or not know it yet, then
                    # this gateway is the last to go to: it would only send us away again.
                    self._avoid[session.gateway.name] = self._clock.now() + _AVOID_S
                return lost
            if self._move is not None:
                move, self._move = self._move, None
                await self._make_before_break(session, move)
            elif session.polling and self._clock.now() >= self._degrade.back_at:
                await self._go_back(session)

    # ------------------------------------------------------------------------------ moves

    def move(self, session: Session, move: pb.Move) -> None:
        if session is self.session:
            self.knows(move.policy_epoch)
            self._move = move
            self._wake.set()

    async def _make_before_break(self, old: Session, move: pb.Move) -> None:
        """Dial first, then let sends land, then connect; the old connection serves until the
        new one does. A move that fails leaves everything as it was and is tried again."""
        if move.within_ms:
            delay_s = self._rng.random() * move.within_ms / 1000
            await asyncio.wait([old.ended], timeout=delay_s)
            if old.ended.done():
                return  # too late: an ordinary reconnect
        try:
            answer = await self._ask()
            gateway = self._target(old.gateway, answer)
            ways = self._ways(self._degrade.polling)
            session = await self._change_to(gateway, ways, move.resume_token)
        except (NoAnswer, SessionLost, AuthError, StoreFailed) as error:
            # AuthError too: the present IDC took the token, so the other's clock may be wrong.
            log.info("the move away from %s failed: %s", old.gateway.name, error)
            self._owner.move_failed()
            if not old.ended.done():
                asked = error.lost if isinstance(error, SessionLost) else error
                self._retry_move(old, move, getattr(asked, "retry_after_ms", 0))
            return
        log.info("moved from %s to %s", old.gateway.name, gateway.name)
        self._leave(old, session)

    async def _change_to(
        self, gateway: Gateway, ways: list[Dialer], resume_token: bytes
    ) -> Session:
        """Raises SessionLost, AuthError, StoreFailed."""
        session = await self._reach(gateway, ways)
        try:
            await self._owner.before_move()
            connect = await self._owner.connect_request(gateway)
            if resume_token:
                connect.resume_token = resume_token
            await self._connect(session, connect)
        except BaseException:
            session.close()
            raise
        return session

    def _leave(self, old: Session, new: Session) -> None:
        self._take(new)
        old.call(pb.Request(bye=pb.Bye()), lambda _: None)
        old.close()

    async def _go_back(self, polled: Session) -> None:
        """To a long connection, at the same gateway; the polled one serves until it stands."""
        try:
            session = await self._change_to(polled.gateway, self._ways(polling=False), b"")
        except (SessionLost, AuthError, StoreFailed) as error:
            log.info("still no long connection to %s: %s", polled.gateway.name, error)
            self._degrade.still_no_way(self._clock.now())
            self._owner.move_failed()
            return
        log.info("a long connection to %s stands again", polled.gateway.name)
        self._degrade.back()
        self._leave(polled, session)

    @staticmethod
    def _target(present: Gateway, answer: Answer) -> Gateway:
        others = [g for g in answer.gateways if g.name != present.name]
        return others[0] if others else answer.gateways[0]

    def _retry_move(self, session: Session, move: pb.Move, after_ms: int) -> None:
        again = pb.Move()
        again.CopyFrom(move)
        again.within_ms = 0
        delay_s = min(after_ms, RETRY_AFTER_MAX_MS) / 1000 + self._rng.uniform(0.2, 1.0)
        asyncio.get_running_loop().call_later(delay_s, self.move, session, again)


def _stop_of(lost: Lost) -> SdkError:
    if lost.reason == "kicked":
        return Kicked("the session was ended: by another device, an operator or one login too many")
    return Replaced("another connection of this device took over")


def _words(plan: Plan) -> tuple[str, int]:
    return plan.where.value, plan.delay_ms
