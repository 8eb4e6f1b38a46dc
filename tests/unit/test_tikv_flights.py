"""Who shares a transaction, and what one batch's fate is to the others."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence

import pytest

from imcore.errors import OutcomeUnknown, StaleWriter, Unavailable
from services.engines.tikv.flights import REST_MAX_S, ROWS_MAX, Flights
from services.ports import Batch


class Sky:
    """Flights that take as long as ``until_over`` is not set."""

    def __init__(self) -> None:
        self.flown: list[list[int]] = []
        self.off = asyncio.Event()
        self.over = asyncio.Event()
        self.error: Exception | None = None
        self.refused: dict[int, Exception] = {}
        self.patience_s = 60.0
        self.flights: Flights[str] = Flights(self.fly, self.deadline)

    def deadline(self) -> float:
        return asyncio.get_running_loop().time() + self.patience_s

    async def fly(self, batches: Sequence[Batch]) -> Mapping[int, str | Exception]:
        self.off.set()
        self.flown.append([batch.partition for batch in batches])
        await self.over.wait()
        if self.error is not None:
            raise self.error
        return {
            b.partition: self.refused.get(b.partition, f"landed {b.partition}") for b in batches
        }

    def join(self, partition: int, rows: int = 1) -> asyncio.Task[str]:
        puts = {partition.to_bytes(2, "big") + n.to_bytes(4, "big"): b"" for n in range(rows)}
        return asyncio.ensure_future(self.flights.join(Batch(partition, 1, b"", puts)))

    async def until(self, flown: int) -> None:
        async with asyncio.timeout(5):
            while len(self.flown) < flown:
                self.off.clear()
                await self.off.wait()


@pytest.fixture
async def sky() -> Sky:
    return Sky()


async def test_who_comes_together_flies_together_and_the_others_with_the_next(sky: Sky) -> None:
    first = [sky.join(partition) for partition in (0, 1, 2)]
    await sky.until(1)
    later = [sky.join(partition) for partition in (3, 4)]
    await asyncio.sleep(0.02)
    sky.over.set()
    assert await asyncio.gather(*first) == ["landed 0", "landed 1", "landed 2"]
    assert await asyncio.gather(*later) == ["landed 3", "landed 4"]
    assert sky.flown == [[0, 1, 2], [3, 4]]


async def test_one_that_is_refused_leaves_the_others_alone(sky: Sky) -> None:
    sky.refused[1] = StaleWriter("another applier")
    sky.over.set()
    found = await asyncio.gather(sky.join(0), sky.join(1), return_exceptions=True)
    assert found[0] == "landed 0" and isinstance(found[1], StaleWriter)


@pytest.mark.parametrize(
    ("error", "kind"), [(Unavailable("away"), Unavailable), (KeyError("bug"), OutcomeUnknown)]
)
async def test_a_flight_that_fails_fails_for_all_and_the_next_one_goes(
    sky: Sky, error: Exception, kind: type[Exception]
) -> None:
    sky.error = error
    sky.over.set()
    found = await asyncio.gather(sky.join(0), sky.join(1), return_exceptions=True)
    assert [type(one) for one in found] == [kind, kind] and found[0] is not found[1]
    sky.error = None
    assert await sky.join(0) == "landed 0"


async def test_who_is_cancelled_aboard_ends_the_flight_and_the_next_one_goes(sky: Sky) -> None:
    gone, other = sky.join(0), sky.join(1)
    await sky.until(1)
    waiting = sky.join(2)
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(OutcomeUnknown):
        await other
    with pytest.raises(asyncio.CancelledError):
        await gone
    sky.over.set()
    assert await waiting == "landed 2"
    assert sky.flown == [[0, 1], [2]]


async def test_who_is_cancelled_before_does_not_fly(sky: Sky) -> None:
    gone = sky.join(0)
    await asyncio.sleep(0)
    gone.cancel()
    await asyncio.gather(gone, return_exceptions=True)
    sky.over.set()
    assert await sky.join(1) == "landed 1"
    assert sky.flown == [[1]]


async def test_who_waits_too_long_does_not_fly_and_who_flies_goes_on(sky: Sky) -> None:
    sky.patience_s = 0.1
    first = sky.join(0)
    await sky.until(1)
    with pytest.raises(Unavailable, match="before it take too long"):
        await sky.join(1)
    sky.patience_s = 60.0
    sky.over.set()
    assert await first == "landed 0" and await sky.join(2) == "landed 2"
    assert sky.flown == [[0], [2]]


async def test_a_shared_flight_has_room_for_so_many_rows(sky: Sky) -> None:
    sky.over.set()
    found = [sky.join(0, ROWS_MAX - 1), sky.join(1, 2), sky.join(2), sky.join(3)]
    await asyncio.gather(*found)
    assert sky.flown == [[0], [1, 2, 3]]


async def test_a_large_batch_flies_alone_and_waits_for_nobody(sky: Sky) -> None:
    first = sky.join(0)
    await sky.until(1)
    large = sky.join(1, ROWS_MAX + 1)
    await sky.until(2)
    assert sky.flown == [[0], [1]]
    sky.refused[1] = StaleWriter("another applier")
    sky.over.set()
    assert await first == "landed 0"
    with pytest.raises(StaleWriter):
        await large


async def test_after_a_flight_there_is_a_rest_as_long_as_it_took_and_no_longer_than_a_bound(
    sky: Sky,
) -> None:
    loop, rests = asyncio.get_running_loop(), list[float]()

    def right() -> bool:
        return bool(rests) and REST_MAX_S * 0.9 <= rests[-1] < 2.5 * REST_MAX_S

    while not right() and len(rests) < 5:  # again, as a busy machine may stop in between
        sky.over.clear()
        flown = len(sky.flown)
        long = sky.join(0)
        await sky.until(flown + 1)
        await asyncio.sleep(3 * REST_MAX_S)
        sky.over.set()
        await long
        began = loop.time()
        await sky.join(0)
        rests.append(loop.time() - began)
    assert right(), rests


async def test_when_it_is_closed_who_flies_does_not_know(sky: Sky) -> None:
    one = sky.join(0)
    await sky.until(1)
    await sky.flights.close()
    with pytest.raises(OutcomeUnknown):
        await one
