"""The newest committed policy that this process knows: never an older one than it has served."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from pathlib import Path
from typing import Protocol

from imcore.errors import Damaged, ImError
from services.policy.document import Policy, from_json

log = logging.getLogger("im.control")


class Disk(Protocol):
    """The part of the engines' disk that is needed; its calls block."""

    def read(self, path: str) -> bytes: ...
    def make_folder(self, folder: str) -> None: ...
    def write_whole(self, path: str, data: bytes) -> None: ...


class PolicyHolder:
    """``stale``: no majority has confirmed it lately, or a newer one is known and cannot be kept.

    Invariant: a policy is on disk before anybody sees it, so a restart never serves a lower epoch.
    So when the disk takes nothing, the former policy stays, flagged, and ``alarm`` says why: to
    serve the newer one from memory would break the invariant at the next restart. The controller
    offers it again at its next reading. Raises Damaged when the file is not a policy."""

    def __init__(self, path: Path, disk: Disk) -> None:
        self._path = path
        self._disk = disk
        self._writing = asyncio.Lock()
        self.stale = True
        self.alarm = ""
        self.policy: Policy | None = None
        self._known = asyncio.Event()
        try:
            self.policy = from_json(disk.read(str(path)))
            self._known.set()
        except FileNotFoundError:
            pass
        except ValueError as error:
            raise Damaged(f"{path} is not a policy; remove it: the registries have it") from error

    async def offer(self, policy: Policy) -> bool:
        """A policy that a majority has just shown to be committed. True when it is newer than what
        was held, and is held now."""
        async with self._writing:
            if self.policy is not None and policy.epoch <= self.policy.epoch:
                if policy.epoch == self.policy.epoch:
                    self._confirmed()
                return False
            try:
                await self._write(policy.to_json())
            except ImError as error:
                self._cannot_keep(policy, error)
                return False
            self.policy = policy
            self._known.set()
            self._confirmed()
            return True

    async def known(self) -> None:
        """Waits until there is one: on the first start, or when the disk was lost, a majority of
        the registries has to tell it first."""
        await self._known.wait()

    def _confirmed(self) -> None:
        self.stale, self.alarm = False, ""

    def cannot_read(self, error: ValueError) -> None:
        """What a majority holds is no policy to this program."""
        self._goes_on(
            f"the policy that a majority of the registries holds cannot be read ({error})"
        )

    def _cannot_keep(self, policy: Policy, error: ImError) -> None:
        self._goes_on(f"the policy of epoch {policy.epoch} cannot be kept ({error})")

    def _goes_on(self, why: str) -> None:
        """By the former policy, flagged."""
        self.stale = True
        served = f"epoch {self.policy.epoch}" if self.policy else "none"
        alarm = f"{why}; {served} is served"
        if alarm != self.alarm:
            log.error("%s", alarm)
        self.alarm = alarm

    async def _write(self, data: bytes) -> None:
        """Not on the loop: an fsync takes as long as the disk likes. A caller that is cancelled
        waits for the thread, so that two never write the file at once."""
        writing = asyncio.ensure_future(asyncio.to_thread(self._write_whole, data))
        try:
            await asyncio.shield(writing)
        except asyncio.CancelledError:
            with contextlib.suppress(ImError):
                await writing
            raise

    def _write_whole(self, data: bytes) -> None:
        self._disk.make_folder(str(self._path.parent))
        self._disk.write_whole(str(self._path), data)
