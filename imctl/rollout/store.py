"""The rollout of a local deployment, kept in its folder: the region files of its units are there
too, so nobody without this folder could drive it.

One `imctl` at a time drives: a lock on a file, which the kernel takes back from a killed one.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from imctl.errors import Failed
from imctl.rollout.record import Rollout, from_json

NAME = "rollout.json"
LOCK = "rollout.lock"
PAUSE = "rollout.pause"


def read(folder: Path) -> Rollout | None:
    """The last one, ended or not. Raises Failed for a damaged file."""
    path = folder / NAME
    try:
        return from_json(path.read_text())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise Failed(
            f"{path}: expected the record of a rollout, got something else; remove it, then look "
            "with `imctl plan` what is left to do"
        ) from error


def write(folder: Path, rollout: Rollout) -> None:
    """On the disk when it returns. Raises Failed."""
    temporary = folder / f".{NAME}.new"
    try:
        with temporary.open("w") as file:
            file.write(rollout.to_json())
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(folder / NAME)
        directory = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise Failed(f"cannot write {folder / NAME}: {error.strerror}") from error


def forget(folder: Path) -> None:
    for name in (NAME, PAUSE):
        (folder / name).unlink(missing_ok=True)


class Driven(Failed):
    """Another `imctl` is at it."""


@contextlib.contextmanager
def driving(folder: Path) -> Iterator[None]:
    """Raises Driven while another `imctl` drives; Failed for a folder that cannot be written."""
    try:
        file = (folder / LOCK).open("a")
    except OSError as error:
        raise Failed(f"cannot write in {folder}: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Who had it may have removed the file with what it ended.
            if os.fstat(file.fileno()).st_ino != (folder / LOCK).stat().st_ino:
                raise FileNotFoundError
        except OSError as error:
            raise Driven(
                "another imctl is at work on a rollout here; `imctl rollout status` shows it, "
                "`imctl rollout pause` stops it"
            ) from error
        yield


@contextlib.contextmanager
def starting(folder: Path) -> Iterator[None]:
    """As ``driving``, by whoever starts all of a deployment, whose folder may not be there yet: two
    at once would make two CAs, and take each other's processes for their own. What is refused
    changes nothing, and leaves no folder."""
    new, unlocked = not folder.exists(), not (folder / LOCK).exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise Failed(
            f"cannot write in {folder}: {error.strerror}; choose another folder with --data"
        ) from error
    try:
        with driving(folder):
            try:
                yield
            except BaseException:
                if unlocked:
                    (folder / LOCK).unlink(missing_ok=True)
                if new:
                    with contextlib.suppress(OSError):  # there is something in it now
                        folder.rmdir()
                raise
    except Driven as error:
        raise Driven(
            f"another imctl is starting the deployment in {folder}, or changing it; wait until "
            "that has ended"
        ) from error


def is_driven(folder: Path) -> bool:
    try:
        with driving(folder):
            return False
    except Driven:
        return True
    except Failed:  # not by somebody who may only read
        return False


def ask_to_pause(folder: Path) -> None:
    (folder / PAUSE).touch()


def told_to_pause(folder: Path) -> bool:
    return (folder / PAUSE).exists()


def clear_pause(folder: Path) -> None:
    (folder / PAUSE).unlink(missing_ok=True)
