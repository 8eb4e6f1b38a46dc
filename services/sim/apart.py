"""Seeds side by side on several cores, each in a process of its own."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

from services.sim.loop import SimLoop, refuse_threads

T = TypeVar("T")

INTERRUPTED = 130

_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MEMORY = {
    "PYTHONMALLOC": "malloc",
    # Large pages where the kernel gives them to who asks; taken from it 256 MB at a time, since
    # they have to be whole; large objects among them, not in mappings of their own.
    "GLIBC_TUNABLES": "glibc.malloc.hugetlb=1:glibc.malloc.top_pad=268435456"
    ":glibc.malloc.mmap_threshold=100000000",
}


def outcomes(run: Callable[[int], T], seeds: Iterable[int], jobs: int) -> Generator[T, None, None]:
    """As they come. ``run`` is pickled; a seed is taken when a core is free for it. Raises
    concurrent.futures.process.BrokenProcessPool when a process was killed."""
    left = iter(seeds)
    waiting: set[Future[T]] = set()
    # A fresh process a seed: what one has left behind cannot reach the next. They are forked from
    # one that has imported everything and done nothing, since to import it takes seconds.
    context = get_context("forkserver")
    context.set_forkserver_preload([_module(run), "services.sim.warm"])
    with (
        large_pages(),
        ProcessPoolExecutor(
            jobs, mp_context=context, initializer=_obey_interrupts, max_tasks_per_child=1
        ) as pool,
    ):
        while True:
            while len(waiting) < jobs and (seed := next(left, None)) is not None:
                waiting.add(pool.submit(run, seed))
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            for future in done:
                yield future.result()


def pages_offered(path: Path) -> bool:
    """What Linux says of it: the word in brackets holds."""
    try:
        return "[never]" not in path.read_text()
    except OSError:
        return False


@contextlib.contextmanager
def large_pages() -> Generator[None, None, None]:
    """For processes that are started meanwhile. A seed walks through some 400 MB of small objects:
    to find them in pages of 4 KB takes time, the more so in a virtual machine.
    Python's own allocator has no large pages, the C library's has, and is slower without them:
    it is taken where the kernel gives them to who asks. What the user has set stays."""
    offered = pages_offered(_PAGES)
    mine = {name: value for name, value in _MEMORY.items() if offered and name not in os.environ}
    os.environ.update(mine)
    try:
        yield
    finally:
        for name in mine:
            os.environ.pop(name, None)


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
