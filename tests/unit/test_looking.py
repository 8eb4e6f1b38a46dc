"""What looks at many rows has bounds, and rests."""

from __future__ import annotations

import asyncio

import pytest

from imcore.errors import Overloaded
from imcore.runtime import SystemClock
from services.im.looking import BURST, ROWS_PER_S, Looking


class _Clock(SystemClock):
    at = 0.0

    def now(self) -> float:
        return self.at


def test_a_user_looks_at_so_many_rows_in_a_time() -> None:
    clock = _Clock()
    looking = Looking(clock)
    with looking.begun("ann", int(2 * BURST)):
        pass
    with pytest.raises(Overloaded) as refused, looking.begun("ann", 1):
        pass
    assert refused.value.retry_after_ms == pytest.approx(BURST / ROWS_PER_S * 1000, rel=0.01)
    with looking.begun("bob", 1):
        pass
    clock.at += 1.01 * BURST / ROWS_PER_S
    with looking.begun("ann", 1):
        pass


def test_so_many_are_under_way() -> None:
    looking = Looking(_Clock())
    begun = []
    with pytest.raises(Overloaded):
        for number in range(1_000):
            begun.append(looking.begun(f"u{number}", 1))
            begun[-1].__enter__()
    assert len(begun) == 65
    begun[0].__exit__(None, None, None)
    with looking.begun("ann", 1):
        pass


async def test_one_looks_at_a_time_and_rests_as_long_as_that_took() -> None:
    clock, order = _Clock(), list[str]()
    looking = Looking(clock)
    loop = asyncio.get_running_loop()

    async def look(name: str) -> None:
        async with looking.turn():
            order.append(name)
            await asyncio.sleep(0)
            clock.at += 0.02
            order.append(name)

    began = loop.time()
    await asyncio.gather(look("a"), look("b"))
    assert order == ["a", "a", "b", "b"]
    assert loop.time() - began >= 0.039
