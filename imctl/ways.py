"""Who asks the registries for a move: this `imctl` itself, or an operator that an object tells."""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

from imcore.errors import BadInput
from imctl.moveplan import MOVES
from imctl.options import By
from imctl.target.local import Local
from imctl.traffic import Control
from services.control.evaluate import Decision
from services.control.rules import Change


class Way(Protocol):
    """``async with way``. ``asks_itself``: what this `imctl` may do counts, and a refusal is asked
    for, so that it stands in the audit; else only what the rules allow is written at all."""

    asks_itself: bool

    async def __aenter__(self) -> Self: ...

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None: ...

    async def submit(self, control: Control, change: Change, epoch: int) -> Decision:
        """``epoch``: of the policy by which it was judged. Raises as ``Control.submit``."""
        ...

    async def settle(self) -> None:
        """Its end is known: whoever else is to say it has a moment for that."""
        ...


class ByRegistries:
    asks_itself = True

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        pass

    async def submit(self, control: Control, change: Change, epoch: int) -> Decision:
        return await control.submit(change)

    async def settle(self) -> None:
        pass


def choose(target: Local, change: Change, wanted: By | None, reason: str) -> Way:
    """``wanted`` None: by an operator where one is there. Raises BadInput; Failed where an operator
    is wanted and none is there."""
    if target.on_pods and change.kind in MOVES and wanted is not By.REGISTRIES:
        # A client of Kubernetes takes its time to load: only for those who have one.
        from imctl.byoperator import chosen
        from imctl.target.kubernetes import Kubernetes

        assert isinstance(target, Kubernetes)
        found = chosen(target, change, wanted is By.OPERATOR, reason)
        if found is not None:
            return found
    elif wanted is By.OPERATOR:
        raise BadInput(
            "--by: expected registries, got operator: imctl has not brought this deployment to "
            "Kubernetes"
        )
    if reason:
        raise BadInput("--reason: only a TrafficOperation keeps one (--by operator)")
    return ByRegistries()
