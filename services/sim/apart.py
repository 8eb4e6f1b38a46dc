"""Seeds side by side on several cores, each in a process of its own."""

from __future__ import annotations

import logging
import signal
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing import forkserver, get_context
from multiprocessing.context import ForkServerContext
from typing import Any, TypeVar

from services.sim.loop import SimLoop, refuse_threads

T = TypeVar("T")

INTERRUPTED = 130


def outcomes(run: Callable[[int], T], seeds: Iterable[int], jobs: int) -> Generator[T, None, None]:
    """As they come. ``run`` is pickled; a seed is taken when a core is free for it. Raises
    concurrent.futures.process.BrokenProcessPool when a process was killed."""
    left = iter(seeds)
    waiting: set[Future[T]] = set()
    # A fresh process a seed: what one has left behind cannot reach the next. They are forked from
    # one that has imported everything and done nothing, since to import it takes seconds.
    context = get_context("forkserver")
    context.set_forkserver_preload([_module(run), "services.sim.warm"])
    _start(context)
    with ProcessPoolExecutor(
        jobs, mp_context=context, initializer=_obey_interrupts, max_tasks_per_child=1
    ) as pool:
        while True:
            while len(waiting) < jobs and (seed := next(left, None)) is not None:
                waiting.add(pool.submit(run, seed))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def _start(context: ForkServerContext) -> None:
    """The one from which they are forked does not hear Ctrl-C, which would break into what it
    imports; whoever waits for it meanwhile hears it behind that. Raises KeyboardInterrupt."""
    pressed: list[int] = []
    heard = signal.signal(signal.SIGINT, signal.SIG_IGN)  # it is started with that
    try:
        forkserver.ensure_running()
        signal.signal(signal.SIGINT, lambda number, frame: pressed.append(number))
        first = context.Process(target=_nothing)
        first.start()
        first.join()
    finally:
        signal.signal(signal.SIGINT, heard)
    if pressed:
        raise KeyboardInterrupt


def _nothing() -> None:
    """There is something to fork from once this has run."""


def _module(run: Callable[[int], T]) -> str:
    function = run.func if isinstance(run, partial) else run
    return str(function.__module__)


def _obey_interrupts() -> None:
    """Ctrl-C reaches these processes too: they clear away what they made, and leave the words to
    their parent."""

    def end(number: int, frame: Any) -> None:
        raise SystemExit(INTERRUPTED)

    signal.signal(signal.SIGINT, end)


def alone() -> None:
    """For a process where nothing but a seed is: no thread and no socket is made in it any more."""
    logging.lastResort = None
    SimLoop.alone = True
    refuse_threads()
