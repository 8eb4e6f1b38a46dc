"""A child process by its identity: a pid alone may long belong to somebody else."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple


class Identity(NamedTuple):
    """A pid, and when the kernel started it (ticks since that boot)."""

    pid: int
    started: int
    boot: str


def boot_id() -> str:
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def identify(pid: int) -> Identity | None:
    """None when there is no such process, or only its unreaped remains."""
    fields = _stat(pid)
    return None if fields is None else Identity(pid, int(fields[19]), boot_id())


def find(
    wanted: Mapping[str, Sequence[str]], known: Container[int] = ()
) -> dict[str, tuple[Identity, list[str]]]:
    """By name, a process of ours with all of its words among its arguments, and its arguments:
    one that was started, and not written down before its parent was killed. ``known``: pids of
    others."""
    left, found = {name: set(words) for name, words in wanted.items()}, {}
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if path.stat().st_uid != os.getuid():
                continue
            arguments = path.read_bytes().decode(errors="replace").split("\0")
            pid = int(path.parent.name)
            name = next((one for one, words in left.items() if words <= set(arguments)), None)
            if name is not None and pid not in known and (identity := identify(pid)):
                del left[name]
                found[name] = identity, arguments
        if not left:
            break
    return found


def age_s(identity: Identity) -> float:
    """Since the kernel started it."""
    started_s = identity.started / os.sysconf("SC_CLK_TCK")
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_s


def state(identity: Identity) -> str:
    """ "running", "paused" or "gone"."""
    fields = _stat(identity.pid)
    if fields is None or int(fields[19]) != identity.started or boot_id() != identity.boot:
        return "gone"
    return "paused" if fields[0] in "Tt" else "running"


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the state on; the name before it may hold anything."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()
    return None if fields[0] in "ZX" else fields


def send(identity: Identity, signum: signal.Signals) -> bool:
    """Signal the process and the others of its session, if it still is the one it was.
    False: it is gone. Each child leads a session of its own, so nobody else is hit."""
    if state(identity) == "gone":
        return False
    try:
        if os.getpgid(identity.pid) == identity.pid:
            os.killpg(identity.pid, signum)
        else:
            os.kill(identity.pid, signum)
    except ProcessLookupError:
        return False
    return True


@contextmanager
def uninterrupted() -> Iterator[None]:
    """What ends this program is held back until the block is over: a child that was started and
    not yet written down would be left behind. (Ignoring the signals instead would make the child
    ignore them too.)"""
    if threading.current_thread() is not threading.main_thread():
        yield  # handlers run in the main thread only
        return
    held: list[int] = []
    signums = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {
        signum: signal.signal(signum, lambda number, frame: held.append(number))
        for signum in signums
        if signal.getsignal(signum) is not None
    }
    try:
        yield
    finally:
        for signum, handler in before.items():
            signal.signal(signum, handler)
        for number in held:
            signal.raise_signal(number)


def wait_gone(identities: list[Identity], timeout_s: float) -> list[Identity]:
    """Those that are still there after the time-out."""
    deadline = time.monotonic() + timeout_s
    left = [one for one in identities if state(one) != "gone"]
    while left and time.monotonic() < deadline:
        time.sleep(0.02)
        left = [one for one in left if state(one) != "gone"]
    return left


def stop(identities: list[Identity], grace_s: float) -> list[Identity]:
    """Ask all to end, wait, then kill. Returns those that had to be killed."""
    for identity in identities:
        send(identity, signal.SIGTERM)
        send(identity, signal.SIGCONT)  # a paused one could not hear it
    stubborn = wait_gone(identities, grace_s)
    for identity in stubborn:
        send(identity, signal.SIGKILL)
    wait_gone(stubborn, 5.0)
    return stubborn
