"""Batches of several partitions that share a transaction.

A transaction costs a handful of calls to PD and the store, whatever is in it: of two rows, 11 ms of
CPU over client, PD and the mock, and 0.3 ms for each row more. So there is one at a time, a rest
after it that is as long as it took once more, and whoever comes meanwhile flies with the next one.
Nothing else is shared: each partition's batch is judged, written and read back by itself.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Generic, NamedTuple, TypeVar

from imcore.errors import ImError, OutcomeUnknown, Unavailable
from services.ports import Batch

log = logging.getLogger("im.kv")

GATHER_S = 0.004  # the partitions of one log wake up together, and come within this time
REST_MAX_S = 0.1
ROWS_MAX = 1_000  # of one transaction that is shared
_T = TypeVar("_T")


class _Passenger(NamedTuple, Generic[_T]):
    batch: Batch
    landed: asyncio.Future[_T]


class Flights(Generic[_T]):
    """``fly`` writes batches, at most one of a partition, and says what became of each; what it
    raises became of all. ``deadline``: until when who comes now waits to fly."""

    def __init__(
        self,
        fly: Callable[[Sequence[Batch]], Awaitable[Mapping[int, _T | Exception]]],
        deadline: Callable[[], float],
    ) -> None:
        self._fly = fly
        self._deadline = deadline
        self._waiting: list[_Passenger[_T]] = []
        self._aboard: list[_Passenger[_T]] = []
        self._running: asyncio.Task[None] | None = None
        self._not_before = 0.0

    async def join(self, batch: Batch) -> _T:
        """One call at a time for a partition. Who is cancelled while it flies ends the flight: the
        others' outcome is unknown then, too. Raises Unavailable when it does not fly in time."""
        if _rows(batch) > ROWS_MAX:
            # What is to catch up with costs by the row: to wait for each other would save nothing.
            outcome = (await self._fly([batch]))[batch.partition]
            if isinstance(outcome, Exception):
                raise outcome
            return outcome
        loop = asyncio.get_running_loop()
        passenger: _Passenger[_T] = _Passenger(batch, loop.create_future())
        self._waiting.append(passenger)
        self._run_on()
        timer = loop.call_at(self._deadline(), self._too_late, passenger)
        try:
            return await passenger.landed
        except asyncio.CancelledError:
            if passenger in self._waiting:
                self._waiting.remove(passenger)
            elif passenger in self._aboard and self._running is not None:
                self._running.cancel()
            raise
        finally:
            timer.cancel()

    def _too_late(self, passenger: _Passenger[_T]) -> None:
        """Those before it take too long. Once it flies, the flight has a deadline of its own."""
        if passenger in self._waiting:
            self._waiting.remove(passenger)
            passenger.landed.set_exception(Unavailable("the transactions before it take too long"))

    async def close(self) -> None:
        if self._running is not None:
            self._running.cancel()
            await asyncio.gather(self._running, return_exceptions=True)

    def _run_on(self) -> None:
        if self._running is None:
            self._running = asyncio.ensure_future(self._run())
            self._running.add_done_callback(self._ended)

    def _ended(self, _: asyncio.Future[None]) -> None:
        self._running = None
        if self._waiting:
            self._run_on()

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        while self._waiting:
            await asyncio.sleep(max(GATHER_S, self._not_before - loop.time()))
            self._aboard = self._take()
            if not self._aboard:
                continue  # all of them were cancelled
            began = loop.time()
            try:
                landed = await self._fly([passenger.batch for passenger in self._aboard])
            except asyncio.CancelledError:
                self._fail(OutcomeUnknown("the transaction was cancelled"))
                raise
            except ImError as error:
                self._fail(error)
            except Exception as error:  # whatever it is, it may have been written
                log.exception("a transaction failed")
                self._fail(OutcomeUnknown(str(error)))
            else:
                self._land(landed)
            self._not_before = loop.time() + min(loop.time() - began, REST_MAX_S)

    def _take(self) -> list[_Passenger[_T]]:
        rows, count = 0, 0
        for passenger in self._waiting:
            rows += _rows(passenger.batch)
            if rows > ROWS_MAX:
                break
            count += 1
        taken = self._waiting[:count]
        del self._waiting[:count]
        return taken

    def _land(self, landed: Mapping[int, _T | Exception]) -> None:
        for passenger in self._aboard:
            outcome = landed[passenger.batch.partition]
            if passenger.landed.done():
                continue
            if isinstance(outcome, Exception):
                passenger.landed.set_exception(outcome)
            else:
                passenger.landed.set_result(outcome)
        self._aboard = []

    def _fail(self, error: ImError) -> None:
        # A copy each: the traceback of one waiter is not another's.
        self._land({it.batch.partition: type(error)(str(error)) for it in self._aboard})


def _rows(batch: Batch) -> int:
    return len(batch.puts) + len(batch.deletes)
