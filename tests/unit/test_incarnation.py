"""Rule 6: who may keep an incarnation, and where the old one is sealed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from services.im.incarnation import PeerFacts, Register, StoreFacts, decide

COMMITTED = Register(1, "aa", 4)
STORE = StoreFacts("aa", 5, 4, 1, (10, 20), clean=True, fsynced=True)
PEERS = (PeerFacts("iad", True, (9, 20), (10, 20)), PeerFacts("sin", True, (10, 18), (10, 20)))


def test_an_unharmed_log_keeps_its_incarnation_and_confirms_its_boot() -> None:
    decision = decide(COMMITTED, STORE, PEERS)
    assert decision.kept
    assert decision.register == Register(1, "aa", 5)


def test_the_first_start_is_incarnation_one() -> None:
    first = StoreFacts("aa", 1, 0, 0, (0, 0), clean=True, fsynced=True)
    assert decide(None, first, ()).register == Register(1, "aa", 1)


@pytest.mark.parametrize(
    ("store", "peers", "why"),
    [
        (replace(STORE, log_id="bb", incarnation=0, ends=(0, 0)), PEERS, "not the one"),
        (replace(STORE, confirmed_boot_count=2, boot_count=3), PEERS, "older copy of the disk"),
        (replace(STORE, clean=False), PEERS, "damaged"),
        (replace(STORE, ends=(8, 20)), PEERS, "it ends at 8"),
        (replace(STORE, ends=(9, 20)), PEERS, "up to 10"),  # announced, though nobody holds it
        (STORE, (replace(PEERS[0], chains_agree=False),), "records differ"),
    ],
)
def test_whatever_is_missing_different_or_damaged_takes_the_next(
    store: StoreFacts, peers: tuple[PeerFacts, ...], why: str
) -> None:
    decision = decide(COMMITTED, store, peers)
    assert not decision.kept
    assert decision.register.incarnation == 2
    assert why in decision.sentence


def test_the_old_incarnation_is_sealed_at_the_longest_copies() -> None:
    wiped = replace(STORE, log_id="bb", incarnation=0, ends=(0, 0))
    seal = decide(COMMITTED, wiped, PEERS).register.seal_of(1)
    assert seal is not None
    assert seal.ends == (10, 20)


def test_a_silent_peer_counts_as_holding_more_unless_the_log_is_whole() -> None:
    silent = (PEERS[0], PeerFacts("sin", answered=False))
    assert decide(COMMITTED, STORE, silent).kept
    in_memory = decide(COMMITTED, replace(STORE, fsynced=False), silent)
    assert not in_memory.kept
    assert "sin may hold more of its log" in in_memory.sentence
    decision = decide(COMMITTED, replace(STORE, log_id="bb"), silent)
    assert not decision.kept
    assert "sin" in decision.alarms[0]


def test_a_boot_that_died_before_the_register_heard_of_it_costs_nothing() -> None:
    # Register still says 4: this boot noted 5, died; the next notes 6.
    assert decide(COMMITTED, replace(STORE, boot_count=6), PEERS).kept
    # Register says 5: that boot committed, then died before it confirmed to its own disk.
    five = replace(COMMITTED, boot_count=5)
    assert decide(five, replace(STORE, boot_count=6), PEERS).kept
    # And the next one died before it committed.
    assert decide(five, replace(STORE, boot_count=7), PEERS).kept


def test_registers_survive_their_json() -> None:
    register = decide(COMMITTED, replace(STORE, log_id="bb"), PEERS).register
    assert Register.from_json(register.to_json()) == register
