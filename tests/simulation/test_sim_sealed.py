"""What simulated clients encrypt is judged."""

from __future__ import annotations

from typing import Any

import pytest

from services.sdk import Client, Message
from services.sdk.sealing import Sealing
from services.sim.region import FRESH_FROM
from services.sim.run import run_seed
from services.sim.sealed import GROUP, Sealed

SEED = FRESH_FROM + 1
SECONDS = 8.0


@pytest.fixture(autouse=True)
def much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Sealed, "per_s", 8.0)


def test_all_read_the_same_and_nothing_is_found() -> None:
    outcome = run_seed(SEED, 2 * SECONDS)
    assert not outcome.violated
    assert all(outcome.doings[kind] for kind in Sealed.kinds), outcome.doings


def test_plain_text_on_a_disk_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    seal, sealed = Sealing.seal, 0

    def plain(self: Sealing, conversation: str, content: bytes, *rest: Any) -> bytes:
        nonlocal sealed
        sealed += 1
        done = seal(self, conversation, content, *rest)
        return done + content if sealed > 20 else done

    monkeypatch.setattr(Sealing, "seal", plain)
    violated = run_seed(SEED, SECONDS).violated
    assert any("cannot read" in each for each in violated), violated
    assert any(each.endswith("has it in plain text") for each in violated), violated


def test_an_acked_message_that_nobody_shows_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    view = Client.view

    def shown(self: Client, conversation: str) -> tuple[Message, ...]:
        found = view(self, conversation)
        return found[:6] + found[7:] if conversation == "d:pat:quo" else found

    monkeypatch.setattr(Client, "view", shown)
    monkeypatch.setattr("services.sim.sealed.EDITS", 0.0)
    assert 0 < GROUP < 1  # else nothing is said in the direct one
    violated = run_seed(SEED, SECONDS).violated
    assert violated and all(each.startswith("sealed: acked and not shown") for each in violated)
