"""The drill that is under way in this process, if any: what actions, probes and the control share.

Actions and probes work without one too (an experiment of somebody's own, without our control): then
a deployment is found as every command finds it, and there is no load."""

from __future__ import annotations

import random
import signal
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar

from chaoslib.exceptions import InterruptExecution

from imcore.errors import ImError
from imcore.runtime import SystemClock
from imctl import deployment
from imctl.drill.breakage import Breakage
from imctl.drill.bridge import Bridge
from imctl.drill.session import Session, Why
from imctl.target.local import Local
from imctl.traffic import Control

T = TypeVar("T")
LASTS_S = 300.0
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class NoSession(ImError):
    """There is no load that could be asked."""


@dataclass(frozen=True, slots=True)
class Scene:
    """What an action finds: the drill that is under way, if any, and what breaks things."""

    session: Session | None
    _breakage: Breakage | None

    def need(self) -> Session:
        if self.session is None:
            raise NoSession("no load runs: the experiment lacks the control imctl.drill.control")
        return self.session

    @property
    def breakage(self) -> Breakage:
        if self._breakage is None:
            raise NoSession("no deployment was looked for")
        return self._breakage


class Stage:
    def __init__(self) -> None:
        self._bridge: Bridge | None = None
        self.session: Session | None = None
        self.undoing = False  # rollbacks are not interrupted by what made them necessary
        self._asked = 0  # how often somebody has asked it to end

    def listen(self) -> None:
        """Who asks it to end (Ctrl-C, SIGTERM, SIGHUP) ends its method, once; who asks again does
        not wait for its judgement. Nothing interrupts the undoing, as the toolkit's own handler
        would each time. To be called inside the toolkit's run, which puts handlers back."""
        self._asked = 0
        for number in ENDS:
            signal.signal(number, self._heard)

    def _heard(self, signum: int, frame: FrameType | None) -> None:
        self._asked += 1
        if self._asked == 1 and self.session is not None and not self.undoing:
            raise (
                KeyboardInterrupt if signum == signal.SIGINT else InterruptExecution("told to end")
            )

    @property
    def hurried(self) -> bool:
        """Asked to end a second time."""
        return self._asked > 1

    def call(self, work: Coroutine[Any, Any, T]) -> T:
        """In the drill's loop; raises Interrupted when the drill is to end meanwhile."""
        try:
            return self.bridge.call(work, self._why if self.session else lambda: "")
        except (InterruptExecution, KeyboardInterrupt):
            # A signal. The toolkit takes what an action raises for the action's failure.
            if self.session is not None and not self.undoing:
                self.session.end_early(Why.OPERATOR, "ended by hand")
            raise

    def undisturbed(self, work: Coroutine[Any, Any, T]) -> T:
        """Clean-up, also of a drill that is to end."""
        return self.bridge.call(work)

    def unhurried(self, work: Coroutine[Any, Any, T]) -> T:
        """What only its judgement needs. Raises Interrupted when nobody waits for that."""
        return self.bridge.call(work, lambda: "ended by hand" if self.hurried else "")

    def _why(self) -> str:
        return self.session.stop_reason() if self.session and not self.undoing else ""

    @property
    def bridge(self) -> Bridge:
        if self._bridge is None:
            self._bridge = Bridge()
        return self._bridge

    def need(self) -> Session:
        return Scene(self.session, None).need()

    def with_session(self, work: Callable[[Scene], Awaitable[T]]) -> T:
        """What needs a deployment only through the load."""

        async def ours() -> T:
            return await work(Scene(self.session, None))

        return self.call(ours())

    def with_scene(self, work: Callable[[Scene], Awaitable[T]]) -> T:
        """With the session's means, or with means of its own."""
        session = self.session
        if session is not None:

            async def ours() -> T:
                return await work(Scene(session, session.breakage))

            return self.call(ours())

        async def alone() -> T:
            target = find()
            async with Control(target, SystemClock(), random.Random()) as control:
                breakage = Breakage.of(target, control, SystemClock(), LASTS_S)
                return await work(Scene(None, breakage))

        return self.call(alone())

    def close(self) -> None:
        if self._bridge is not None:
            self._bridge.close()
        self._bridge, self.session, self.undoing = None, None, False


def find(data: Path | None = None) -> Local:
    return deployment.find(data)


stage = Stage()
