"""Dials several gateways; the first whose handshake is over is taken, and only there a session is
opened: the others cost none."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence

from imcore.runtime import Clock
from services.sdk.core.race import Race
from services.sdk.session import Session, SessionLost

Dial = Callable[[], Coroutine[None, None, Session]]
OnLoss = Callable[[int, SessionLost], None]  # which of them, and how


class Dials:
    """Of one client. A gateway that has lost a race is still waited for, up to its time-out: one
    that is silent is found out then, and reported, as if it had been the only one."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self._late: dict[asyncio.Task[Session], None] = {}

    async def first(
        self, dials: Sequence[Dial], head_starts: Sequence[float], on_loss: OnLoss
    ) -> Session | None:
        """The first that answers, None when none does. ``on_loss`` may be called later too. What
        a dial raises beside SessionLost is raised."""
        race = Race(head_starts)
        running: dict[asyncio.Task[Session], int] = {}
        try:
            while not race.over():
                while (index := race.due(self._clock.now())) is not None:
                    running[asyncio.create_task(dials[index]())] = index
                await asyncio.wait(
                    running,
                    timeout=race.wait_s(self._clock.now()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                for task, index in list(running.items()):  # the better one, if two are there
                    if not task.done():
                        continue
                    del running[task]
                    try:
                        session = task.result()
                    except SessionLost as lost:
                        race.failed()
                        on_loss(index, lost)
                    else:
                        for late, number in running.items():
                            self._wait_for(late, number, on_loss)
                        return session
            return None
        except BaseException:
            for task in running:
                task.add_done_callback(_close)
                task.cancel()
            raise

    def _wait_for(self, late: asyncio.Task[Session], index: int, on_loss: OnLoss) -> None:
        def done(task: asyncio.Task[Session]) -> None:
            self._late.pop(task, None)
            _close(task)
            if not task.cancelled() and isinstance(lost := task.exception(), SessionLost):
                on_loss(index, lost)

        self._late[late] = None
        late.add_done_callback(done)

    def close(self) -> None:
        for task in list(self._late):
            task.cancel()


def _close(task: asyncio.Task[Session]) -> None:
    if not task.cancelled() and task.exception() is None:
        task.result().close()
