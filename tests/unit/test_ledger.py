"""The ledger of canaries: delayed, lost, twice, out of order, each at its pair of IDCs."""

from __future__ import annotations

from imcore import history as h
from imcore.checker.ledger import Ledger

PAIRS = {"f": ("fra", "iad"), "i": ("iad", "fra")}


def fed(*events: h.Event) -> Ledger:
    ledger = Ledger(PAIRS)
    for event in (h.Device(0, 0, "f", "phone"), h.Device(0, 1, "i", "phone"), *events):
        ledger.feed(event)
    return ledger


def sent(tag: str, at: int, n: int = 0) -> list[h.Event]:
    return [h.Compose(at, n, 0, tag, 0), h.Ack(at + 1, n, tag, "stored")]


def shown(tag: str, at: int, n: int = 1) -> h.Event:
    return h.Shown(at, n, 0, tag, 0, False)


def final(*tags: str) -> list[h.Event]:
    return [h.Login(900, 9, "i", "fra", "final"), h.View(900, 9, 0, list(tags))]


def test_a_message_that_arrives_counts_with_its_time() -> None:
    ledger = fed(*sent("1", 100), shown("1", 3100), *final("1"))
    entry = ledger.entries()["fra", "iad"]
    assert (entry.sent, entry.acked, entry.lost, entry.duplicates) == (1, 1, 0, 0)
    assert entry.latency().max_ms == 3.0
    assert ledger.entries()["iad", "fra"].sent == 0


def test_lost_is_what_a_final_view_or_the_receiver_lacks() -> None:
    assert fed(*sent("1", 100), shown("1", 200), *final()).entries()["fra", "iad"].lost == 1
    assert fed(*sent("1", 100), *final("1")).entries()["fra", "iad"].lost == 1
    unacked = fed(h.Compose(100, 0, 0, "1", 0), *final())
    assert unacked.entries()["fra", "iad"].lost == 0


def test_delayed_is_what_survivors_lacked_and_what_is_there_in_the_end() -> None:
    fault = h.Fault(500, "fra", "killed")
    look: list[h.Event] = [h.Login(600, 0, "i", "iad", "rpo"), h.View(600, 0, 0, ["2"])]
    before = [*sent("1", 100), *sent("2", 200)]
    after = sent("3", 550)
    arrived = [shown(tag, 800) for tag in "123"]
    entry = fed(*before, fault, *after, *look, *arrived, *final("1", "2", "3")).entries()
    assert entry["fra", "iad"].delayed == 1  # "1"; "3" was acked after the fault
    assert entry["fra", "iad"].lost == 0


def test_twice_and_out_of_order_are_counted_at_the_senders_pair() -> None:
    events = [*sent("1", 100, 1), *sent("2", 200, 1), shown("1", 300, 0), shown("1", 310, 0)]
    entry = fed(*events, shown("2", 320, 0), *final("2", "1")).entries()["iad", "fra"]
    assert (entry.duplicates, entry.out_of_order) == (1, 1)
    again = fed(*sent("1", 100, 1), shown("1", 300, 0), *final("1", "1")).entries()["iad", "fra"]
    assert again.duplicates == 1
