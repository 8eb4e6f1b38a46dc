"""Who is told to leave a gateway that restarts."""

from __future__ import annotations

from typing import NamedTuple

import pytest

from services.node import succession


class Here(NamedTuple):
    session: str
    connection: int
    connected: bool = True


class State:
    """Of three clients one goes, one comes back first, and one stays."""

    def __init__(self) -> None:
        self.here = {"goes": Here("goes", 1), "stays": Here("stays", 2), "back": Here("back", 3)}
        self.told: list[tuple[str, int]] = []

    def connected_count(self) -> int:
        return len(self.here)

    def sessions(self) -> list[Here]:
        return list(self.here.values())

    def move(self, session: str, within_ms: int, policy_epoch: int) -> bool:
        at = self.here[session]
        self.told.append((session, at.connection))
        if at.connection == 3:
            self.here[session] = Here(session, 4)
        elif session != "stays":
            del self.here[session]
        return True


async def test_who_comes_back_is_told_again_and_nobody_else(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(succession, "AGAIN_S", 0.01)
    monkeypatch.setattr(succession, "LEAVE_S", 0.3)
    state = State()
    await succession.leave(state, 100.0, 1)  # type: ignore[arg-type]
    assert sorted(state.told) == [("back", 3), ("back", 4), ("goes", 1), ("stays", 2)]
