"""A program that a test starts, kills, pauses and waits for."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from imctl.errors import Failed


class Startable(Protocol):
    def start(self) -> None:
        """Until it serves."""

    def kill(self) -> None: ...


S = TypeVar("S", bound=Startable)


class Child:
    """One at a time: whoever starts it again has killed it, or knows that it ended."""

    def __init__(self, name: str, log: Path) -> None:
        self._name = name
        self.log = log
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self, command: Sequence[str]) -> None:
        with self.log.open("ab") as log:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def until_ready(self, ready: Callable[[], bool], seconds: float) -> None:
        """Raises Failed, with the end of its log, when it has ended or the time is over."""
        deadline = time.monotonic() + seconds
        while not ready():
            if not self.alive or time.monotonic() >= deadline:
                raise Failed(f"{self._name} does not start: {self.log.read_text()[-800:]}")
            time.sleep(0.02)

    @property
    def alive(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def pause(self) -> None:
        """Returns once it stands still: some of its threads go on for a moment."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        tasks = Path(f"/proc/{self.pid}/task")
        while any(_state(task) not in "TtZX" for task in tasks.iterdir()):
            time.sleep(0.001)

    def resume(self) -> None:
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)


@contextlib.contextmanager
def started(process: S) -> Iterator[S]:
    """Killed afterwards, also when it never served."""
    try:
        process.start()
        yield process
    finally:
        process.kill()


def _state(task: Path) -> str:
    try:
        return (task / "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "X"
