"""What the peer of one connection sends, in steps: the time that it takes is its own.

An event loop hands over what a read has brought, up to 256 KiB, and whoever takes it has the loop
until he is done with it. Small frames are dear: so much of them may take most of a second. Here a
read is cut into steps, after a few milliseconds of them it is others' turn, and who has used up his
share of the CPU waits until he has some again. Meanwhile he is not read from.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, cast

from imcore.runtime import Clock
from imcore.work import Work

STEP_BYTES = 4 * 1024
# To look at the CPU's clock costs a system call, twice a read: a tenth of a message. So what comes
# in a small read, a request or two, has a price by its bytes: that of the dearest frames there are.
SMALL_BYTES = 512
SMALL_S = 1.2e-6  # of CPU for a byte
TURN_S = 0.005  # of CPU; then the others have their turn
AT_ONCE_S = 0.1  # of CPU; then no more than the share
_AGAIN_S = 0.1  # until it is looked whether there is some again


class Intake(asyncio.Transport, asyncio.Protocol):
    """Towards the transport below a protocol, towards ``above`` a transport. ``dear`` is told when
    the peer has used up its share. ``first``: of what comes, what has come before."""

    __slots__ = (
        "_above", "_below", "_below_reads", "_clock", "_closing", "_dear", "_held", "_in_turn",
        "_next", "_reading", "_work",
    )  # fmt: skip

    def __init__(
        self,
        above: asyncio.Protocol,
        clock: Clock,
        dear: Callable[[], None],
        first: bytes = b"",
    ) -> None:
        super().__init__()
        self._above = above
        self._clock = clock
        self._dear = dear
        self._work = Work(clock.now(), AT_ONCE_S)
        self._below: asyncio.Transport
        self._held = first  # has come, and waits for its turn
        self._next: asyncio.Handle | None = None  # that turn
        self._in_turn = False
        self._reading = True  # from above: it is to be read from
        self._below_reads = True
        self._closing = False

    # --------------------------------------------------------------------- of the one below

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._below = cast(asyncio.Transport, transport)
        self._above.connection_made(self)
        if self._held:
            self._turn()

    def data_received(self, data: bytes) -> None:
        if self._closing:  # QUIC goes on bringing until the peer has taken the goodbye
            return
        self._held = self._held + data if self._held else data
        if self._next is None and not self._in_turn:
            self._turn()

    def eof_received(self) -> bool | None:
        return self._above.eof_received()

    def pause_writing(self) -> None:
        self._above.pause_writing()

    def resume_writing(self) -> None:
        self._above.resume_writing()

    def connection_lost(self, exc: Exception | None) -> None:
        self._end()
        self._above.connection_lost(exc)

    # ------------------------------------------------------------------------------- turns

    def _turn(self) -> None:
        self._next = None
        if self._work.left <= 0.0 and self._work.empty(self._clock.now()):
            self._dear()
            if not self._closing:
                self._next = asyncio.get_running_loop().call_later(_AGAIN_S, self._later)
        elif self._held:
            self._take_steps()
            if self._held and self._reading:
                self._next = asyncio.get_running_loop().call_soon(self._later)
        self._steer()

    def _later(self) -> None:
        """As the transports' own loop does with what a protocol raises."""
        try:
            self._turn()
        except Exception as error:
            context = {"message": "a protocol failed", "exception": error, "transport": self}
            asyncio.get_running_loop().call_exception_handler(context)
            self.abort()

    def _take_steps(self) -> None:
        held, at = self._held, 0
        if not self._reading or self._closing:
            return
        self._held, self._in_turn = b"", True
        if len(held) <= SMALL_BYTES:
            self._work.pay(len(held) * SMALL_S)
            try:
                self._above.data_received(held)
            finally:
                self._in_turn = False
            return
        cpu = self._clock.cpu
        began, spent = cpu(), 0.0
        try:
            while at < len(held) and self._reading and not self._closing and spent < TURN_S:
                step = held if len(held) <= STEP_BYTES else held[at : at + STEP_BYTES]
                at += len(step)
                self._above.data_received(step)
                spent = cpu() - began
        finally:
            self._in_turn = False
            # A collection of garbage may fall into a step, and is nobody's.
            self._work.pay(min(spent, 2 * AT_ONCE_S))
        if at < len(held) and not self._closing:
            self._held = held[at:] + self._held

    def _steer(self) -> None:
        """Read on only when nothing waits."""
        reads = self._reading and not self._held and self._next is None
        if reads == self._below_reads or self._closing:
            return
        self._below_reads = reads
        if reads:
            self._below.resume_reading()
        else:
            self._below.pause_reading()

    def _end(self) -> None:
        self._closing = True
        self._held = b""
        if self._next is not None:
            self._next.cancel()
            self._next = None

    # ----------------------------------------------------------------------- to the one above

    @property
    def kind(self) -> str:
        return getattr(self._below, "kind", "tcp")

    def held(self) -> bytes:
        """What has come and was not handed on."""
        return self._held

    def pause_reading(self) -> None:
        self._reading = False
        if not self._in_turn:
            self._steer()

    def resume_reading(self) -> None:
        self._reading = True
        if self._in_turn or self._closing:
            return
        if self._held and self._next is None:
            self._next = asyncio.get_running_loop().call_soon(self._later)
        self._steer()

    def is_reading(self) -> bool:
        return self._reading and not self._closing

    def set_protocol(self, protocol: asyncio.BaseProtocol) -> None:
        self._above = cast(asyncio.Protocol, protocol)

    def get_protocol(self) -> asyncio.BaseProtocol:
        return self._above

    def write(self, data: Any) -> None:
        self._below.write(data)

    def close(self) -> None:
        self._end()
        self._below.close()

    def abort(self) -> None:
        self._end()
        self._below.abort()

    def is_closing(self) -> bool:
        return self._below.is_closing()

    def set_write_buffer_limits(self, high: int | None = None, low: int | None = None) -> None:
        self._below.set_write_buffer_limits(high, low)

    def get_write_buffer_size(self) -> int:
        return self._below.get_write_buffer_size()

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return self._below.get_extra_info(name, default)
