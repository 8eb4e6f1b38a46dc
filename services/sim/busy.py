"""Clients that do something again and again, at random, until cancelled."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Mapping
from typing import Any, TypeAlias, cast

from imcore.errors import ImError
from services.loadgen.load import Load, Member
from services.loadgen.population import Population
from services.loadgen.recorder import Recorder
from services.sim.world import SimSession

Doing: TypeAlias = Callable[[Any], Awaitable[None]]
Kinds: TypeAlias = Mapping[str, tuple[float, Doing]]


class Busy:
    """``run`` until cancelled, then ``end``. ``counts``: what was begun, by kind. What is done
    and by whom is drawn from ``name`` and the seed alone. ``kinds``: of what is done, by name, how
    likely it is against the others, and what it does; so many of all a second."""

    kinds: Kinds = {}  # noqa: RUF012  # of each class its own, never changed
    per_s = 0.0

    def __init__(self, load: Load, recorder: Recorder, seed: int, name: str) -> None:
        self.counts: Counter[str] = Counter()
        self._load = load
        self._recorder = recorder
        self._rng = random.Random(f"{name} {seed}")
        self._tasks: dict[asyncio.Task[None], None] = {}
        self._broken: BaseException | None = None

    async def run(self) -> None:
        names = list(self.kinds)
        weights = [self.kinds[name][0] for name in names]
        while True:
            await asyncio.sleep(self._rng.expovariate(self.per_s))
            if self._broken is not None:
                raise self._broken
            name = self._rng.choices(names, weights)[0]
            self.counts[name] += 1
            self._spawn(cast(Coroutine[Any, Any, None], self.kinds[name][1](self)))

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        del self._tasks[task]
        if not task.cancelled() and (error := task.exception()) is not None:
            self._broken = self._broken or error

    async def end(self, within_s: float) -> bool:
        """Until all that was begun is over. Raises what was no ImError."""
        if self._tasks:
            await asyncio.wait(list(self._tasks), timeout=within_s)
        if self._broken is not None:
            raise self._broken
        return not self._tasks

    # -------------------------------------------------------------------------------- who

    def _session(self, member: Member) -> SimSession:
        return cast(SimSession, member.session)

    def _anybody(self) -> Member | None:
        """A device whose application runs."""
        running = [each for each in self._load.devices if self._session(each).running]
        return self._rng.choice(running) if running else None

    def _device_of(self, uid: str) -> Member | None:
        devices = [each for each in self._load.devices_of(uid) if self._session(each).running]
        return self._rng.choice(devices) if devices else None

    # ------------------------------------------------------------------------------- words

    async def _say(
        self, member: Member, kind: str, about: str, value: str, request: Coroutine[Any, Any, None]
    ) -> None:
        """A word of ``imcore.history.Word``, by what the SDK is asked for."""
        ask = self._recorder.word(member.ear, kind, about, value)
        with contextlib.suppress(ImError):  # it counts or not, or is still to
            await self._session(member).there(request)
            self._recorder.word_done(ask)


def lookers(population: Population) -> list[str]:
    """Of each pair the one who is to log in afresh in the end (``services.loadgen.logins``)."""
    return sorted(min(pair) for pair in population.pairs)
