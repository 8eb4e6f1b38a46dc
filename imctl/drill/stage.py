"""The drill that is under way in this process, if any: what actions, probes and the control share.

Actions and probes work without one too (an experiment of somebody's own, without our control): then
a deployment is found as every command finds it, and there is no load."""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from pathlib import Path
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
