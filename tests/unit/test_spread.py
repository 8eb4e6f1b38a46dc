"""What is done for thousands of sessions leaves the loop to the others in between."""

from __future__ import annotations

import asyncio
from functools import partial

from imcore.runtime import SystemClock
from services.state.spread import Spread


async def test_one_slice_is_done_at_once_and_the_others_in_turns_of_their_own() -> None:
    spread = Spread(SystemClock())
    done: list[int] = []
    spread.add([partial(done.append, 1)])
    assert (done, len(spread)) == ([1], 0)
    turns = 0
    spread.add(partial(done.append, number) for number in range(2, 12))
    spread.add([partial(done.append, 12)])  # behind them
    assert done == [1, 2]
    while len(spread):
        turns += 1
        await asyncio.sleep(0)
    assert done == list(range(1, 13)) and turns >= 10


async def test_work_that_fails_does_not_stop_what_comes_behind_it() -> None:
    spread = Spread(SystemClock())
    done: list[int] = []
    failures: list[object] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: failures.append(context))

    def fails() -> None:
        raise ValueError

    spread.add([partial(done.append, 1), fails, partial(done.append, 2)])
    while len(spread):  # noqa: ASYNC110 - its turns are what is looked at
        await asyncio.sleep(0)
    assert done == [1, 2] and len(failures) == 1
