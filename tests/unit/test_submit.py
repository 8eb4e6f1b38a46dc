"""A change of the policy whose outcome is not known is never called refused, nor undone."""

from __future__ import annotations

import random
from pathlib import Path

import pytest

from imcore.errors import OutcomeUnknown, Unavailable
from imcore.region.load import load_region
from imcore.roles import Role
from imcore.runtime import SystemClock
from imctl import traffic
from services.control.evaluate import Decision
from services.control.evidence import Evidence
from services.control.rules import Blocker, Change, Kind

REGION = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")
FAILOVER = Change(Kind.FAILOVER, "fra", "r1", "operator")
UNKNOWN = OutcomeUnknown("the change of policy may or may not be committed")
AWAY = Unavailable("no majority of the registries answered")
REFUSED = Decision(None, "refused", (Blocker("transition", "a", "b", "c"),))


class Blind(traffic.Steering):
    async def statuses(self, timeout_s: float) -> dict[str, object]:  # type: ignore[override]
        return {}

    async def evidence(self) -> Evidence:
        return Evidence()


async def submitted(monkeypatch: pytest.MonkeyPatch, *said: Exception | Decision) -> Decision:
    left = list(said)

    async def commit(*_: object) -> Decision:
        found = left.pop(0)
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(traffic, "commit", commit)
    async with Blind(REGION, Role.ADMIN, {}, SystemClock(), random.Random(1)) as steering:
        return await steering.submit(FAILOVER)


@pytest.mark.parametrize("then", [AWAY, REFUSED])
async def test_what_was_offered_once_may_stand_whatever_is_said_after_it(
    monkeypatch: pytest.MonkeyPatch, then: Exception | Decision
) -> None:
    with pytest.raises(OutcomeUnknown, match="`imctl status` shows"):
        await submitted(monkeypatch, UNKNOWN, then, then)


async def test_what_is_certain_is_said_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert await submitted(monkeypatch, REFUSED) is REFUSED
    with pytest.raises(Unavailable, match="no majority"):
        await submitted(monkeypatch, AWAY)
