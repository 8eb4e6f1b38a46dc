"""What is done for thousands of sessions leaves the loop to the others in between."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from functools import partial

import pytest
import uvloop

from imcore.runtime import SystemClock
from services.state.spread import TURN_S, Pace, Spread


def cost(pace: Pace, each_s: float, turns: int) -> list[int]:
    """The pieces of so many turns."""
    found = []
    for _ in range(turns):
        found.append(pace.pieces)
        pace.took(each_s * pace.pieces)
    return found


@pytest.mark.parametrize(("each_s", "settled"), [(0.0001, 10), (0.0004, 2), (0.01, 1)])
def test_a_turn_takes_a_millisecond_or_one_piece(each_s: float, settled: int) -> None:
    pieces = cost(Pace(), each_s, 20)
    assert pieces[0] == 1 and pieces[-1] == pytest.approx(settled, abs=1)
    assert all(after <= 2 * before for before, after in itertools.pairwise(pieces))


def test_what_takes_no_time_is_not_done_all_at_once() -> None:
    assert max(cost(Pace(), 0.0, 50)) == 64


def test_it_takes_a_quarter_of_the_loop() -> None:
    pace = Pace()
    busy = pause = 0.0
    for _ in range(50):
        took = 0.0002 * pace.pieces
        busy += took
        pause += pace.took(took)
    assert busy / (busy + pause) == pytest.approx(0.25, abs=0.01)


def test_others_work_within_a_turn_is_not_taken_for_its_own() -> None:
    pace = Pace()
    cost(pace, 0.0001, 10)
    pieces = pace.pieces
    pause = pace.took(0.0001 * pieces + 0.05)  # others took 50 ms before the time was looked at
    assert pace.pieces >= pieces - 1 and pause < 4 * TURN_S
    assert cost(pace, 0.01, 10)[-1] == 1  # but what has become dear for good is


async def test_one_piece_is_done_at_once_and_the_others_in_turns_of_their_own() -> None:
    spread = Spread(SystemClock())
    done: list[int] = []
    spread.add(partial(done.append, number) for number in range(1, 12))
    spread.add([partial(done.append, 12)])  # behind them
    assert (done, len(spread)) == ([1], 11)
    turns = 0
    while len(spread):
        turns += 1
        await asyncio.sleep(0)
    assert done == list(range(1, 13)) and turns >= 4


async def test_work_that_fails_does_not_stop_what_comes_behind_it() -> None:
    spread = Spread(SystemClock())
    done: list[int] = []
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    def fails() -> None:
        raise ValueError

    spread.add([partial(done.append, 1), fails, partial(done.append, 2)])
    spread.add([partial(done.append, 3)])
    while len(spread):  # noqa: ASYNC110 - its turns are what is looked at
        await asyncio.sleep(0)
    assert done == [1, 2, 3] and len(failures) == 1


@pytest.mark.parametrize("new_loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_what_is_written_after_a_turn_counts_as_its_work(
    new_loop: Callable[[], asyncio.AbstractEventLoop],
) -> None:
    """As a gateway does: the push only asks for the write, which is most of the work."""

    async def run() -> float:
        spread, loop = Spread(SystemClock()), asyncio.get_running_loop()

        def push() -> None:
            loop.call_soon(time.sleep, 0.002)

        begun = loop.time()
        spread.add([push] * 40)
        while len(spread):  # noqa: ASYNC110 - its turns are what is looked at
            await asyncio.sleep(0.001)
        return loop.time() - begun

    with asyncio.Runner(loop_factory=new_loop) as runner:
        assert runner.run(run()) > 0.9 * 40 * 0.008  # three quarters of it were others'
