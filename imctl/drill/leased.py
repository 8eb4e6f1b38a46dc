"""``python -m imctl.drill.leased ARGUMENT...``: `imctl` with these arguments, for as long as the
operator that has started it may write.

The operator says on standard input, a line each time, for how many seconds it may still write. When
that time is over, or the pipe is closed, this process is told to end as by SIGTERM: a drill ends
then, and undoes what it did. It is told twice, since nobody is there who would take its report."""

from __future__ import annotations

import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable

FIRST_S = 10.0  # until the first line
AGAIN_S = 1.0
BEHIND = 5  # a third of the operator's share of their container's cores, when these are short


def watch(pipe: int, end: Callable[[], None], first_s: float = FIRST_S) -> None:
    """``end`` is called once, when the time that the last line gave is over."""
    until, rest = time.monotonic() + first_s, b""
    while (left := until - time.monotonic()) > 0:
        if not select.select([pipe], [], [], left)[0]:
            continue
        if not (read := os.read(pipe, 4096)):
            break
        *lines, rest = (rest + read).split(b"\n")
        if lines:
            until = time.monotonic() + float(lines[-1])
    end()


def main() -> None:
    def end() -> None:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(AGAIN_S)
        os.kill(os.getpid(), signal.SIGTERM)

    # Its load must not keep the operator from renewing the lease that it lives by.
    os.nice(BEHIND)
    threading.Thread(target=watch, args=(sys.stdin.fileno(), end), daemon=True).start()
    from imctl.main import main as imctl  # the time runs already

    imctl()


if __name__ == "__main__":
    main()
