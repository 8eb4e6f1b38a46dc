"""The book of faults: every fault that a drill makes is written here before it is made, with its
expiry, and struck out once it is undone. Whoever finds it (the drill itself, the janitor, `imctl
drill abort`, the next run's preflight) can undo what is left.

One file in the deployment's folder, changed under a lock and replaced whole. Another lock is held
by the drill for as long as it lives: the kernel lets go of it however the drill ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from imctl.errors import Failed
from imctl.target.process import Identity, identify

BOOK = "drill-faults.json"
RUN_LOCK = "drill.lock"


class Kind(StrEnum):
    KILL = "kill"  # undone by a start
    PAUSE = "pause"
    LINK = "link"  # cut or slow, one way or both
    CLOCK = "clock"
    DISK = "disk"
    MOVE = "move"  # of traffic: the IDC is given its clients back


@dataclass(frozen=True, slots=True)
class Fault:
    """``unit``: what is broken; ``other``: the far end of a link. Times: wall clock, ms."""

    id: str
    kind: Kind
    unit: str
    other: str
    sentence: str
    made_ms: int
    expires_ms: int

    def undoing(self) -> str:
        """What undoes it, in a sentence."""
        link = f"the link between {self.unit} and {self.other} is restored"
        return {
            Kind.KILL: f"{self.unit} is restarted",
            Kind.PAUSE: f"{self.unit} is resumed",
            Kind.LINK: link,
            Kind.CLOCK: f"the clock of {self.unit} is restored",
            Kind.DISK: f"the disk of {self.unit} is restored",
            Kind.MOVE: f"{self.unit} gets its clients back",
        }[self.kind]


@dataclass(slots=True)
class Book:
    """``active``: the IDCs that had all their clients before the drill; they get them back."""

    drill: str = ""
    run: str = ""
    active: list[str] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


# The order of undoing: what stands still goes on and what is cut is joined before anything is
# started, and traffic comes back last.
_ORDER = (Kind.PAUSE, Kind.DISK, Kind.CLOCK, Kind.LINK, Kind.KILL, Kind.MOVE)


def in_order(faults: list[Fault]) -> list[Fault]:
    return sorted(faults, key=lambda fault: (_ORDER.index(fault.kind), -fault.made_ms))


def expired(faults: list[Fault], now_ms: int) -> list[Fault]:
    return [fault for fault in faults if fault.expires_ms <= now_ms]


class FaultBook:
    """The file in ``folder``. Every change is on disk before it returns. Raises Failed."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / BOOK

    def read(self) -> Book:
        try:
            document = json.loads(self._path.read_text())
            faults = [Fault(**{**row, "kind": Kind(row["kind"])}) for row in document["faults"]]
            return replace(Book(**{**document, "faults": faults}))
        except FileNotFoundError:
            return Book()
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise Failed(
                f"{self._path}: expected what a drill writes, got something else ({error}); look "
                "with `imctl status` for faults that are left, undo them, then remove the file"
            ) from error

    def begin(self, drill: str, run: str, active: list[str]) -> None:
        """Raises Failed when faults of an earlier drill still stand in it."""
        with self._changing() as book:
            if book.faults:
                raise Failed("an earlier drill left faults; undo them with `imctl drill abort`")
            book.drill, book.run, book.active = drill, run, active

    def add(self, fault: Fault) -> None:
        with self._changing() as book:
            book.faults.append(fault)

    def strike(self, fault_id: str) -> None:
        with self._changing() as book:
            book.faults = [fault for fault in book.faults if fault.id != fault_id]

    def end(self) -> None:
        """Only when nothing is left in it."""
        with self._changing() as book:
            if not book.faults:
                book.drill, book.run, book.active = "", "", []

    @contextlib.contextmanager
    def _changing(self) -> Iterator[Book]:
        try:
            with self._path.with_suffix(".lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX)
                book = self.read()
                yield book
                new = self._path.with_suffix(".new")
                with new.open("w") as file:
                    file.write(json.dumps(book.to_json(), indent=1) + "\n")
                    file.flush()
                    os.fsync(file.fileno())
                new.replace(self._path)
        except OSError as error:
            raise Failed(f"cannot write {self._path}: {error.strerror}") from error


class RunLock:
    """Held by the one drill of a deployment that is under way; names its process."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / RUN_LOCK
        self._file: IO[str] | None = None

    def take(self) -> bool:
        """False: somebody has it."""
        file = self._path.open("a+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.close()
            return False
        file.truncate(0)
        me = identify(os.getpid())
        json.dump(me._asdict() if me else {}, file)
        file.flush()
        self._file = file
        return True

    def release(self) -> None:
        if self._file is not None:
            self._file.truncate(0)
            self._file.close()
            self._file = None

    def holder(self) -> Identity | None:
        """The process that wrote it; None when that cannot be read (it has just been taken)."""
        try:
            row: Mapping[str, Any] = json.loads(self._path.read_text())
            return Identity(**row)
        except (OSError, ValueError, TypeError):
            return None

    def held(self) -> bool:
        if self._file is not None:
            return True
        if taken := self.take():
            self.release()
        return not taken
