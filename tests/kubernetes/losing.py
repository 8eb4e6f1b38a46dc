"""The loss of an IDC in pods while its clients talk, and its return."""

from __future__ import annotations

import time
from collections.abc import Callable, Collection

from imctl.testing.cast import Cast, Couple
from imctl.testing.lab import Lab

Figure = Callable[[float], None]


async def failed_over(
    lab: Lab, couple: Couple, victim: str, others: Collection[str], began: float, figure: Figure
) -> None:
    """Until ``victim``, which is gone since ``began``, is failed, and one of the others takes what
    its client in ``couple`` sends. ``figure`` is given the seconds until it was failed."""
    await lab.wait_state(victim, "failed")
    figure(round(time.monotonic() - began, 1))
    assert await couple.here.send(couple.conversation) and couple.here.idc in others


async def killed_and_given_back(
    lab: Lab, cast: Cast, couple: Couple, victim: str, others: Collection[str], figure: Figure
) -> None:
    """As ``failed_over``; then it is started, and has its clients again."""
    began = time.monotonic()
    await cast.kill(victim)
    await failed_over(lab, couple, victim, others, began, figure)
    await lab.start(victim)
    code, said = await lab.imctl("failback", victim, "--yes")
    assert code == 0, said
    await lab.all_active()
