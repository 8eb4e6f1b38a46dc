"""Side connections: pull-only, to gateways of IDCs that a signal named."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from functools import partial

from imcore.proto import client_pb2 as pb
from imcore.runtime import Clock
from services.sdk.core.seen import Seen
from services.sdk.errors import AuthError
from services.sdk.ipconf import Answer
from services.sdk.session import Session, SessionLost
from services.sdk.transport import Dialer

_AVOID_S = 2.0  # an IDC that could not be reached is left alone for as long


def _ignore(_: Session, __: pb.Event) -> None:
    """A side connection has no route: nothing is pushed to it."""


class SideLinks:
    """At most one per IDC, closed when idle."""

    def __init__(
        self,
        dialer: Callable[[], Dialer],
        seen: Seen,
        clock: Clock,
        idle_ms: int,
        answer: Callable[[], Answer | None],
        connect: Callable[[], pb.Connect],
    ) -> None:
        self._dialer = dialer
        self._seen = seen
        self._clock = clock
        self._idle_s = idle_ms / 1000
        self._answer = answer
        self._connect = connect
        self._sessions: dict[str, Session] = {}
        self._opening: dict[str, asyncio.Lock] = {}
        self._closers: dict[str, asyncio.TimerHandle] = {}
        self._avoid: dict[str, float] = {}

    async def get(self, idc: str) -> Session | None:
        """None: there is no gateway there, or none answers."""
        async with self._opening.setdefault(idc, asyncio.Lock()):
            session = self._sessions.get(idc)
            if session is None or session.ended.done():
                session = await self._open(idc)
            if session is not None:
                self._close_later(idc)
            return session

    async def _open(self, idc: str) -> Session | None:
        answer = self._answer()
        if answer is None or self._clock.now() < self._avoid.get(idc, 0.0):
            return None
        timeout_s = answer.parameters.connect_timeout_ms / 1000
        for gateway in [g for g in answer.gateways if g.idc == idc][:2]:
            session = Session(gateway, self._seen, self._clock, _ignore)
            try:
                await session.dial(self._dialer(), timeout_s)
                await session.connect(self._connect(), timeout_s)
            except (SessionLost, AuthError):
                session.close()
                continue
            except asyncio.CancelledError:  # the client is closed, and knows nothing of this one
                session.close()
                raise
            self._sessions[idc] = session
            return session
        self._avoid[idc] = self._clock.now() + _AVOID_S
        return None

    def _close_later(self, idc: str) -> None:
        timer = self._closers.pop(idc, None)
        if timer is not None:
            timer.cancel()
        self._closers[idc] = asyncio.get_running_loop().call_later(
            self._idle_s, partial(self._close, idc)
        )

    def _close(self, idc: str) -> None:
        self._closers.pop(idc, None)
        session = self._sessions.pop(idc, None)
        if session is not None:
            session.close()

    def close(self) -> None:
        for timer in self._closers.values():
            timer.cancel()
        for idc in list(self._sessions):
            self._close(idc)
