"""An event loop with virtual time: nothing is waited for, the clock leaps to what comes next.

Several simulated processes share one loop. Which of them a callback or task belongs to stands in
its context (``OWNER``), so that a process can be crashed or paused between any two steps of any of
its tasks. What blocks in a thread in production runs here in the loop, a little later, as if a
thread had done it meanwhile. There are no threads, no sockets and no waiting.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import contextlib
import contextvars
import gc
import heapq
import logging
import random
import sys
from collections import deque
from collections.abc import Callable, Coroutine
from typing import Any, Protocol

Host = Callable[..., Any]

_new = object.__new__
_copy_context = contextvars.copy_context

_CANCELLED_MAX = 256  # timers that were called off and still lie in the heap
_RUNNING = (
    (asyncio, "get_running_loop"),
    (asyncio.events, "get_running_loop"),
    (asyncio.events, "_get_running_loop"),
)  # who is asked for the loop
_WORK_S = (0.000_05, 0.000_5)  # how long work in a thread takes, without what the disk adds


class Stuck(Exception):
    """Nothing is left that could ever happen."""


class Owner:
    """One simulated process: running, paused or dead for good. ``context`` is what its callbacks
    run in."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.dead = False
        self.paused = False
        self.held: list[asyncio.Handle] = []  # what came while it was paused
        # Tasks that will never go on are kept: to collect one would run its ``finally`` clauses.
        self.tasks: list[asyncio.Task[Any]] = []
        self.look_at = 100  # when there are more of them, those that are done are let go
        self.context = contextvars.copy_context()
        self.context.run(OWNER.set, self)


OWNER: contextvars.ContextVar[Owner | None] = contextvars.ContextVar("owner", default=None)


class Network(Protocol):
    """What the loop's connections and servers are made of (services.sim.net)."""

    async def connect(self, factory: Host, host: str, port: int) -> tuple[Any, Any]: ...

    def listen(self, factory: Host, host: str, port: int) -> Any: ...


class SimTask(asyncio.Task[Any]):
    """Sets of tasks are walked in the order of their hashes: these do not hang on addresses."""

    _last = 0
    _number = 0

    def __hash__(self) -> int:
        if not self._number:  # asyncio asks first, for its set of all tasks
            SimTask._last = self._number = SimTask._last + 1
        return self._number


def _nothing() -> None:
    """What a handle that was called off would call: it holds on to nothing else."""


class SimHandle(asyncio.Handle):
    """Made once a step, by ``SimLoop.call_soon`` in place: asyncio's own way also asks whether the
    loop is debugged."""

    __slots__ = ()
    # Of a loop that is debugged; never set, so the class may have them.
    _repr = _source_traceback = None
    _context: contextvars.Context

    def cancel(self) -> None:
        self._cancelled = True
        self._callback, self._args = _nothing, ()


class SimTimer(asyncio.TimerHandle):
    __slots__ = ()
    _repr = _source_traceback = None
    _context: contextvars.Context
    _loop: SimLoop
    _when: float
    _scheduled: bool

    def cancel(self) -> None:
        if not self._cancelled:
            self._cancelled = True
            if self._scheduled:
                self._loop._timer_cancelled_count += 1
            self._callback, self._args = _nothing, ()


class SimLoop(asyncio.BaseEventLoop):
    """``seed`` decides how long work in threads takes. ``close`` when done."""

    alone = False  # no other loop is in this process, and no thread (services.sim.apart)

    def __init__(self, seed: int) -> None:
        super().__init__()
        self.rng = random.Random(f"loop {seed}")
        self.network: Network | None = None
        self.steps = 0
        self._now = 0.0
        self._in_work = False
        self.collects = True  # what is left, when it is closed; needless where the process ends
        self._timers = 0
        # By executor, when its last work is done. It is kept, or its address could be another's.
        self._lane_free: dict[Any, float] = {}
        SimTask._last = 0

    def time(self) -> float:
        return self._now

    # Every future, task and cancelled handle asks. A type that gives False answers from C.
    get_debug = staticmethod(bool)

    # ------------------------------------------------------------------------------ timers

    def call_at(  # type: ignore[override]
        self,
        when: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        """Timers of one moment go off in the order in which they were made. What lies in the heap
        is compared ten times before it goes off: as tuples that costs a sixth of what it costs as
        asyncio's handles, whose comparison is written in Python (5 % of a seed)."""
        if self._closed:
            self._check_closed()
        handle: SimTimer = _new(SimTimer)
        handle._context = _copy_context() if context is None else context
        handle._loop = self
        handle._callback = callback
        handle._args = args
        handle._cancelled = False
        handle._when = when
        handle._scheduled = True
        self._timers += 1
        heapq.heappush(self._scheduled, (when, self._timers, handle))
        return handle

    def call_later(  # type: ignore[override]
        self,
        delay: float,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_soon(  # type: ignore[override]
        self,
        callback: Callable[..., Any],
        *args: Any,
        context: contextvars.Context | None = None,
    ) -> asyncio.Handle:
        if self._closed:
            self._check_closed()
        handle: SimHandle = _new(SimHandle)
        handle._context = _copy_context() if context is None else context
        handle._callback = callback
        handle._args = args
        handle._cancelled = False
        self._ready.append(handle)
        return handle

    _closed: bool
    _ready: deque[Any]
    _check_closed: Callable[[], None]

    # ------------------------------------------------------------------------------- tasks

    def create_task(  # type: ignore[override]
        self,
        coro: Coroutine[Any, Any, Any],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> SimTask:
        if self._closed:
            self._check_closed()
        # With a name, since asyncio writes one for each that has none.
        task = SimTask(coro, loop=self, name=name or "task", context=context)
        owner = OWNER.get() if context is None else context.get(OWNER)
        if owner is not None:
            owner.tasks.append(task)
            if len(owner.tasks) > owner.look_at:
                owner.tasks = [each for each in owner.tasks if not each.done()]
                owner.look_at = 2 * len(owner.tasks) + 100
        return task

    # -------------------------------------------------------------------------------- turns

    def _run_once(self) -> None:
        if not self.alone:
            self._turns()
            return
        # asyncio's own asks the kernel for the process's number each time, in case it has forked
        # (until Python 3.12): 3,000 times a simulated second, 4 % of the samples of a profile.
        own = [(place, name, getattr(place, name)) for place, name in _RUNNING]
        for place, name in _RUNNING:
            setattr(place, name, lambda: self)
        try:
            self._turns()
        finally:
            for place, name, asked in own:
                setattr(place, name, asked)

    def _turns(self) -> None:
        """Turns until the loop is told to stop: nearly every one has a single step, so a call for
        each, and asyncio's own way to run a handle, were a tenth of a seed."""
        ready, scheduled = self._ready, self._scheduled
        steps = 0
        while True:
            if self._timer_cancelled_count > _CANCELLED_MAX:
                self._forget_cancelled()
            while scheduled and scheduled[0][2]._cancelled:
                self._timer_cancelled_count -= 1
                heapq.heappop(scheduled)[2]._scheduled = False
            if not ready and not self._stopping:
                if not scheduled:
                    raise Stuck("no callback and no timer is left")
                self._now = max(self._now, scheduled[0][0])
            now = self._now
            while scheduled and scheduled[0][0] <= now:
                handle = heapq.heappop(scheduled)[2]
                handle._scheduled = False
                if handle._cancelled:
                    self._timer_cancelled_count -= 1
                ready.append(handle)
            for _ in range(len(ready)):
                handle = ready.popleft()
                if handle._cancelled:
                    continue
                context = handle._context
                owner = context.get(OWNER)
                if owner is None or not (owner.dead or owner.paused):
                    steps += 1
                    try:
                        context.run(handle._callback, *handle._args)
                    except (SystemExit, KeyboardInterrupt):
                        raise
                    except BaseException as error:
                        self._raised(handle, error)
                elif not owner.dead:
                    owner.held.append(handle)
            if self._stopping:
                self.steps += steps
                return

    def _raised(self, handle: Any, error: BaseException) -> None:
        said = {"message": f"Exception in callback {handle}", "exception": error, "handle": handle}
        self.call_exception_handler(said)

    _stopping: bool
    _timer_cancelled_count: int
    _scheduled: list[tuple[float, int, Any]]

    def _forget_cancelled(self) -> None:
        alive = []
        for timer in self._scheduled:
            if timer[2]._cancelled:
                timer[2]._scheduled = False
            else:
                alive.append(timer)
        heapq.heapify(alive)
        self._scheduled[:] = alive
        self._timer_cancelled_count = 0

    def pause(self, owner: Owner) -> None:
        owner.paused = True

    def resume(self, owner: Owner) -> None:
        """What came meanwhile happens now, in the order in which it came."""
        owner.paused = False
        self._ready.extend(owner.held)
        owner.held = []

    def crash(self, owner: Owner) -> None:
        """Not one step of it is made any more."""
        owner.dead = True
        owner.held = []

    # ------------------------------------------------------------------------------ threads

    def _write_to_self(self) -> None:
        """``call_soon_threadsafe`` wakes nobody: there is nobody asleep."""

    def run_in_executor(  # type: ignore[override]
        self, executor: Any, func: Callable[..., Any], *args: Any
    ) -> asyncio.Future[Any]:
        """In this loop, soon; in the order of the calls for one executor."""
        future = self.create_future()

        def settle(result: Any, error: BaseException | None) -> None:
            if future.done():
                return
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        self._work(executor, lambda: func(*args), settle)
        return future

    def _work(
        self,
        lane: Any,
        func: Callable[[], Any],
        settle: Callable[[Any, BaseException | None], None],
    ) -> None:
        def run() -> None:
            self._in_work = True
            try:
                result, error = func(), None
            except Exception as raised:
                result, error = None, raised
            finally:
                self._in_work = False
            settle(result, error)

        # The default executor has many threads, the others one each, or behave so.
        begin = self._now if lane is None else max(self._now, self._lane_free.get(lane, 0.0))
        done = begin + self.rng.uniform(*_WORK_S) + self.disk_delay_s(OWNER.get())
        if lane is not None:
            self._lane_free[lane] = done
        self.call_at(done, run)

    def disk_delay_s(self, owner: Owner | None) -> float:
        """What work in a thread waits for besides; set by a world with slow disks."""
        return 0.0

    def executor(self, workers: int, name: str) -> concurrent.futures.Executor:
        return SimExecutor(self)

    # --------------------------------------------------------------------------- connections

    async def create_connection(  # type: ignore[override]
        self, protocol_factory: Host, host: str, port: int, *, ssl: Any = None, **rest: Any
    ) -> tuple[Any, Any]:
        """TLS is left out: ``ssl`` is not looked at."""
        assert self.network is not None, "this loop has no network"
        return await self.network.connect(protocol_factory, host, port)

    async def create_server(  # type: ignore[override]
        self, protocol_factory: Host, host: str, port: int, *, ssl: Any = None, **rest: Any
    ) -> Any:
        assert self.network is not None, "this loop has no network"
        return self.network.listen(protocol_factory, host, port)

    def close(self) -> None:
        """What has not ended is given up without a word: most of it belongs to dead processes, and
        what its ``finally`` clauses do and say has no meaning any more."""
        unraisable, sys.unraisablehook = sys.unraisablehook, lambda said: None
        logging.disable(logging.CRITICAL)
        try:
            for task in asyncio.all_tasks(self):
                task._log_destroy_pending = False  # type: ignore[attr-defined]
                with contextlib.suppress(BaseException):
                    task.get_coro().close()
            self._ready.clear()
            self._scheduled.clear()
            super().close()
            if self.collects:
                gc.collect()
        finally:
            logging.disable(logging.NOTSET)
            sys.unraisablehook = unraisable


class SimExecutor(concurrent.futures.Executor):
    """What is submitted from the loop runs in the loop, later and in order; what work submits runs
    at once, since work waits for it."""

    def __init__(self, loop: SimLoop) -> None:
        self._loop = loop

    def submit(
        self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any
    ) -> concurrent.futures.Future[Any]:
        future: concurrent.futures.Future[Any] = concurrent.futures.Future()

        def settle(result: Any, error: BaseException | None) -> None:
            if error is None:
                future.set_result(result)
            else:
                future.set_exception(error)

        if self._loop._in_work:
            try:
                settle(fn(*args, **kwargs), None)
            except Exception as error:
                settle(None, error)
        else:
            self._loop._work(self, lambda: fn(*args, **kwargs), settle)
        return future


def refuse_threads() -> None:
    """From now on this process makes no thread and no socket: either would end the determinism."""
    import socket
    import threading

    def refused(*args: Any, **kwargs: Any) -> Any:
        raise RuntimeError("a simulation makes no threads and no sockets")

    threading.Thread.start = refused  # type: ignore[method-assign]
    socket.socket.connect = refused  # type: ignore[method-assign]
    socket.socket.bind = refused  # type: ignore[method-assign]
