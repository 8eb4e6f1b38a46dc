"""The newest committed policy that this process knows: never an older one than it has served."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from imcore.errors import Damaged
from services.control.policy import Policy, from_json

OnPolicy = Callable[[Policy], None]


class PolicyHolder:
    """``stale``: no majority has confirmed it lately. The policy is on disk before anybody sees it,
    so a restart never serves a lower epoch. Raises Damaged when the file is not a policy."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._callbacks: list[OnPolicy] = []
        self.stale = True
        self.policy: Policy | None = None
        try:
            self.policy = from_json(path.read_bytes())
        except FileNotFoundError:
            pass
        except ValueError as error:
            raise Damaged(f"{path} is not a policy; remove it: the registries have it") from error

    def subscribe(self, callback: OnPolicy) -> None:
        """``callback`` is called from the loop after each change of epoch."""
        self._callbacks.append(callback)

    def offer(self, policy: Policy) -> bool:
        """A policy known to be committed. True when it is newer than what was held."""
        if self.policy is not None and policy.epoch <= self.policy.epoch:
            return False
        self._write(policy.to_json())
        self.policy = policy
        for callback in self._callbacks:
            callback(policy)
        return True

    def _write(self, data: bytes) -> None:
        self._path.parent.mkdir(parents=True, exist_ok=True)
        part = self._path.with_suffix(".part")
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(self._path)
