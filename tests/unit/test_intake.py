"""A read in steps: what it costs is paid by who sent it. Cost and time are what the test says."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from imcore.runtime import ManualClock
from imcore.work import CPU_SHARE, Work
from services.gateway import intake
from services.gateway.intake import (
    AT_ONCE_S,
    SMALL_BYTES,
    SMALL_S,
    STEP_BYTES,
    TURN_S,
    Intake,
)


class Below(asyncio.Transport):
    def __init__(self) -> None:
        super().__init__()
        self.reads = True
        self.aborted = False

    def pause_reading(self) -> None:
        self.reads = False

    def resume_reading(self) -> None:
        self.reads = True

    def abort(self) -> None:
        self.aborted = True

    def close(self) -> None:
        self.aborted = True


class Above(asyncio.Protocol):
    """``cost_s`` of a step."""

    def __init__(self, clock: ManualClock, cost_s: float) -> None:
        self.clock = clock
        self.cost_s = cost_s
        self.steps: list[bytes] = []
        self.transport: Any = None
        self.pauses = False
        self.fails = False

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport

    def data_received(self, data: bytes) -> None:
        if self.fails:
            raise RuntimeError("a mistake")
        self.steps.append(data)
        self.clock.cpu_s += self.cost_s
        if self.pauses:
            self.transport.pause_reading()

    @property
    def came(self) -> bytes:
        return b"".join(self.steps)


class Rig:
    def __init__(self, cost_s: float, first: bytes = b"") -> None:
        self.clock = ManualClock()
        self.above = Above(self.clock, cost_s)
        self.below = Below()
        self.dear = 0
        self.intake = Intake(self.above, self.clock, self._dear, first)
        self.intake.connection_made(self.below)

    def _dear(self) -> None:
        self.dear += 1


DATA = bytes(range(256)) * 256  # 64 KiB: 16 steps


async def turns(count: int) -> None:
    for _ in range(count):
        await asyncio.sleep(0)


async def test_what_costs_little_is_taken_at_once() -> None:
    rig = Rig(0.0)
    rig.intake.data_received(DATA)
    assert rig.above.came == DATA and max(map(len, rig.above.steps)) == STEP_BYTES
    assert rig.below.reads


async def test_others_have_their_turn_after_a_few_milliseconds() -> None:
    rig = Rig(TURN_S / 2)
    rig.intake.data_received(DATA)
    assert len(rig.above.steps) == 2 and not rig.below.reads
    await turns(1)
    assert len(rig.above.steps) == 4
    await turns(6)
    assert rig.above.came == DATA and rig.below.reads


async def test_a_peer_has_no_more_than_its_share(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(intake, "_AGAIN_S", 0.0)
    rig = Rig(0.01)
    for _ in range(4):
        rig.intake.data_received(DATA)  # 64 steps: 0.64 s
    await turns(30)
    steps = len(rig.above.steps)
    assert steps == pytest.approx(AT_ONCE_S / 0.01, abs=1) and rig.dear and not rig.below.reads
    for _ in range(100):
        rig.clock.advance(0.01)
        await turns(3)
    assert len(rig.above.steps) - steps == pytest.approx(CPU_SHARE / 0.01, abs=1)
    for _ in range(200):
        rig.clock.advance(0.01)
        await turns(3)
    assert rig.above.came == DATA * 4 and rig.below.reads


async def test_small_reads_have_a_price_and_are_not_measured() -> None:
    rig = Rig(1.0)  # whatever they cost
    looks = 0
    cpu = rig.clock.cpu

    def counted() -> float:
        nonlocal looks
        looks += 1
        return cpu()

    rig.clock.cpu = counted  # type: ignore[method-assign]
    affordable = int(AT_ONCE_S / (SMALL_BYTES * SMALL_S))
    for _ in range(affordable + 1):
        rig.intake.data_received(DATA[:SMALL_BYTES])
    assert (len(rig.above.steps), looks, rig.dear) == (affordable + 1, 0, 0)
    rig.intake.data_received(DATA[:SMALL_BYTES])
    assert rig.dear == 1 and not rig.below.reads


async def test_who_is_not_to_be_read_from_is_not_even_of_what_has_come() -> None:
    rig = Rig(0.0)
    rig.above.pauses = True
    rig.intake.data_received(DATA)
    await turns(3)
    assert rig.above.steps == [DATA[:STEP_BYTES]] and not rig.below.reads
    assert rig.intake.held() == DATA[STEP_BYTES:]
    rig.above.pauses = False
    rig.intake.resume_reading()
    await turns(1)
    assert rig.above.came == DATA and rig.below.reads and not rig.intake.held()


async def test_what_came_before_comes_first() -> None:
    rig = Rig(0.0, b"first")
    rig.intake.data_received(b"second")
    assert rig.above.came == b"firstsecond"


async def test_nothing_comes_after_it_was_closed() -> None:
    rig = Rig(TURN_S)
    rig.intake.data_received(DATA)
    rig.intake.close()
    await turns(3)
    assert len(rig.above.steps) == 1 and rig.below.aborted


async def test_what_comes_while_it_closes_costs_no_turn_and_no_memory() -> None:
    rig = Rig(0.0)
    rig.intake.close()  # gracefully: by QUIC, until the peer has all that was written
    for _ in range(3):
        rig.intake.data_received(DATA)
        assert not rig.intake.held() and rig.intake._next is None
    await turns(3)
    assert not rig.above.steps


async def test_what_comes_of_a_step_that_closes_it_is_not_kept() -> None:
    rig = Rig(0.0)

    def closes(data: bytes) -> None:
        rig.intake.close()
        rig.intake.data_received(DATA)  # TLS hands over what it has read when it is closed

    rig.above.data_received = closes  # type: ignore[method-assign]
    rig.intake.data_received(DATA)
    assert not rig.intake.held() and rig.intake._next is None


async def test_a_protocol_that_fails_in_a_later_turn_is_cut() -> None:
    told: list[Any] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    rig = Rig(TURN_S)
    rig.intake.data_received(DATA)
    rig.above.fails = True
    await turns(1)
    assert rig.below.aborted and isinstance(told[0]["exception"], RuntimeError)


def test_work_is_paid_back_by_time() -> None:
    work = Work(0.0, 0.5)
    assert not work.empty(100.0)  # no more than there is at once
    work.pay(1.5)
    assert work.empty(100.0) and work.empty(100.0 + 0.99 / CPU_SHARE)
    assert not work.empty(100.0 + 1.01 / CPU_SHARE)
