"""Carries a rollout on, step by step, and writes each down. Decides nothing: what is next is
``next``'s, whether a soak goes well ``gates``', whether traffic may move the evaluator's."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from functools import partial
from typing import Protocol

from imcore.errors import ImError, OutcomeUnknown, Unavailable
from imctl.errors import Denied
from imctl.rollout.gates import failing, kind_of
from imctl.rollout.next import Do, Seen, Step, World, next_step
from imctl.rollout.record import Rollout, State
from services.policy.document import MOVES_PER_S

POLL_S = 0.5
# How long a step may take before the rollout is paused.
WAIT_S = 120.0  # and as long as the movers need for all sessions of the IDC, twice
SOAK_MORE_S = 30.0  # beyond the soak itself, for gates that do not hold at first
SILENT_S = 3.0  # one answer that is late is no silence
# A guard may say no for so long: another move ends, a lag goes down, a time between moves passes.
REFUSED_S = 90.0
RESTARTS_MAX = 2
ASKS_MAX = 3  # granted, of one kind for one IDC: more, and somebody takes it back each time


class Ground(Protocol):
    """Where the rollout happens. Calls raise ImError."""

    async def look(self, rollout: Rollout) -> dict[str, Seen]: ...

    async def drain(self, idc: str, rollout: Rollout) -> str:
        """Empty when it is under way, else the refusal, by the rules of either file."""
        ...

    async def failback(self, idc: str) -> str: ...

    async def cordon(self, idc: str) -> str: ...

    async def restart(self, unit: str, wanted: str) -> None:
        """Stop it if it runs, and start it with this file; done again it is the same."""
        ...

    async def apply(self, unit: str, wanted: str) -> None:
        """What changes under it while it runs; done again it is the same."""
        ...

    async def adopt(self, wanted: str) -> None: ...

    def write(self, rollout: Rollout) -> None:
        """Durably, all or nothing."""
        ...

    def told_to_pause(self) -> bool: ...

    def last_words(self, unit: str) -> str:
        """The last line of its log."""
        ...

    def now(self) -> float:
        """Steady seconds."""
        ...

    def wall_ms(self) -> int: ...

    async def sleep(self, seconds: float) -> None: ...


Tell = Callable[[str, str], None]  # unit, sentence


class Driver:
    def __init__(self, ground: Ground, rollout: Rollout, tell: Tell) -> None:
        self.rollout = rollout
        self._ground = ground
        self._tell = tell
        self._step: tuple[Do, str, str] = (Do.WAIT, "", "")
        self._since = 0.0  # when this kind of step began for this unit
        self._clean_since: float | None = None
        self._restarts: dict[str, int] = {}
        self._applies: dict[str, int] = {}
        self._asks: dict[tuple[Do, str], int] = {}

    async def run(self) -> Rollout:
        """Until it has ended or is paused."""
        if not self.rollout.sessions:
            await self._note_the_start()
        while self.rollout.state is State.RUNNING:
            if self._ground.told_to_pause():
                self._note("", "paused", state=State.STOPPED, why="", gate=False)
                break
            await self._once()
        return self.rollout

    async def _note_the_start(self) -> None:
        units = await self._ground.look(self.rollout)
        sessions = {name: seen.sessions for name, seen in units.items() if seen.state is not None}
        alarms = sorted({kind_of(name, a) for name, seen in units.items() for a in seen.alarms})
        self.rollout = replace(self.rollout, sessions=sessions, alarms=tuple(alarms))
        self._ground.write(self.rollout)

    async def _once(self) -> None:
        try:
            step = await self._look_and_judge()
        except Denied as error:
            self._pause(self.rollout.current, str(error), gate=False)
            return
        except ImError as error:
            step = Step(Do.WAIT, self.rollout.current, f"there is an answer ({error})")
        if (step.do, step.unit, step.mark) != self._step:
            self._step, self._since = (step.do, step.unit, step.mark), self._ground.now()
            if step.do in (Do.WAIT, Do.SOAK):
                words = "waits until" if step.do is Do.WAIT else f"soaks {self.rollout.soak_s:g} s:"
                self._tell(step.unit, f"{words} {step.sentence}")
        try:
            await self._take(step)
        except ImError as error:
            self._pause(step.unit, f"{step.do}: {error}", gate=False)

    async def _look_and_judge(self) -> Step:
        world = World(await self._ground.look(self.rollout))
        step = next_step(self.rollout, world)
        if step.do not in (Do.SOAK, Do.FINISH):
            self._clean_since = None
            return step
        now, wrong = self._ground.now(), failing(self.rollout, world, step.unit)
        if wrong:
            self._clean_since = None
        elif self._clean_since is None:
            self._clean_since = now
        soaked_s = now - self._clean_since if self._clean_since is not None else 0.0
        return next_step(self.rollout, replace(world, soaked_s=soaked_s, failing=wrong))

    async def _take(self, step: Step) -> None:
        unit, spent_s = step.unit, self._ground.now() - self._since
        match step.do:
            case Do.WAIT:
                moves_s = 2 * self.rollout.sessions.get(unit, 0) / MOVES_PER_S
                await self._wait(step, spent_s, WAIT_S + moves_s + step.more_s, gate=False)
            case Do.SOAK:
                await self._wait(step, spent_s, self.rollout.soak_s + SOAK_MORE_S, gate=True)
            case Do.BEGIN:
                seen = (await self._ground.look(self.rollout))[unit]
                found = {**self.rollout.found, unit: str(seen.state or "")}
                self._note(unit, step.sentence, found=found)
            case Do.SKIP if spent_s < SILENT_S:
                await self._ground.sleep(POLL_S)
            case Do.SKIP:
                skipped = {**self.rollout.skipped, unit: step.sentence}
                self._note(unit, step.sentence, skipped=skipped)
            case Do.DRAIN:
                drain = partial(self._ground.drain, rollout=self.rollout)
                await self._ask(step, drain, spent_s)
            case Do.FAILBACK:
                await self._ask(step, self._ground.failback, spent_s)
            case Do.CORDON:
                await self._ask(step, self._ground.cordon, spent_s)
            case Do.RESTART:
                await self._restart(step)
            case Do.APPLY:
                await self._apply(step)
            case Do.FINISH:
                done = (*self.rollout.done, unit)
                self._note(unit, step.sentence, done=done, restarting="")
            case Do.ADOPT:
                await self._ground.adopt(self.rollout.wanted)
                self._end()

    async def _wait(self, step: Step, spent_s: float, limit_s: float, gate: bool) -> None:
        if spent_s >= limit_s:
            what = step.sentence if gate else f"after {spent_s:.0f} s not yet: {step.sentence}"
            self._pause(step.unit, what, gate)
        else:
            await self._ground.sleep(POLL_S)

    async def _ask(self, step: Step, ask: Callable[[str], Awaitable[str]], spent_s: float) -> None:
        try:
            refusal = await ask(step.unit)
        except (Unavailable, OutcomeUnknown) as error:  # the next look tells what came of it
            refusal = str(error)
        if not refusal:
            asks = self._asks[step.do, step.unit] = self._asks.get((step.do, step.unit), 0) + 1
            if asks > ASKS_MAX:
                self._pause(step.unit, f"its {step.do} does not last; who takes it back?", True)
                return
            self._note(step.unit, step.sentence)
        elif spent_s >= REFUSED_S:
            self._pause(step.unit, refusal, gate=True)
        else:
            await self._ground.sleep(POLL_S)

    async def _restart(self, step: Step) -> None:
        unit = step.unit
        count = self._restarts[unit] = self._restarts.get(unit, 0) + 1
        if count > RESTARTS_MAX:
            said = self._ground.last_words(unit)
            self._pause(unit, f"it ends by itself again and again: {said}", gate=False)
            return
        if self.rollout.restarting != unit:  # known before it is down: nobody may leave it so
            self.rollout = replace(self.rollout, restarting=unit)
            self._ground.write(self.rollout)
        await self._ground.restart(unit, self.rollout.wanted)
        self._note(unit, step.sentence)

    async def _apply(self, step: Step) -> None:
        count = self._applies[step.unit] = self._applies.get(step.unit, 0) + 1
        if count > ASKS_MAX:
            self._pause(step.unit, "what is applied does not last; who takes it back?", True)
            return
        await self._ground.apply(step.unit, self.rollout.wanted)
        self._note(step.unit, step.sentence)

    # ----------------------------------------------------------------------------- record

    def _note(self, unit: str, sentence: str, **changed: object) -> None:
        self.rollout = self.rollout.said(self._ground.wall_ms(), unit, sentence, **changed)
        self._ground.write(self.rollout)
        self._tell(unit, sentence)

    def _pause(self, unit: str, why: str, gate: bool) -> None:
        said = f"{unit}: {why}" if unit else why
        self._note(unit, f"paused: {why}", state=State.PAUSED, why=said, gate=gate)

    def _end(self) -> None:
        left = ", ".join(f"{unit} {why}" for unit, why in self.rollout.skipped.items())
        state = State.EXCEPTIONS if left else State.DONE
        at_ms = self._ground.wall_ms()
        self._note("", f"{self.rollout.id} is {state}", state=state, why=left, ended_ms=at_ms)
