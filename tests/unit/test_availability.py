"""Recovery time, switchover gap and RPO from hand-made histories."""

from __future__ import annotations

from imcore import history as h
from imcore.checker.availability import Availability

MS = 1000


def fed(*events: h.Event) -> Availability:
    availability = Availability()
    for event in events:
        availability.feed(event)
    return availability


def connected(devices: int, idc: str) -> list[h.Event]:
    return [h.Connection(0, n, idc, f"{idc}-gw-1") for n in range(devices)]


def sent(device: int, composed_ms: int, acked_ms: int | None) -> list[h.Event]:
    tag = f"{device}.{composed_ms}-x"
    events: list[h.Event] = [h.Compose(composed_ms * MS, device, 0, tag, 0)]
    if acked_ms is not None:
        events.append(h.Ack(acked_ms * MS, device, tag, "stored"))
    return events


KILL = [h.Fault(1000 * MS, "fra", "kill"), h.Fault(1010 * MS, "fra", "killed")]


def test_rto_is_when_99_percent_of_the_affected_were_acked_again() -> None:
    acks = [event for n in range(200) for event in sent(n, 1100, 3000 + n)]
    availability = fed(*connected(200, "fra"), h.Connection(0, 900, "iad", "g"), *KILL, *acks)
    assert len(availability.outages[0].affected) == 200
    assert availability.outages[0].rto_us() == (3000 + 197 - 1000) * MS


def test_messages_composed_before_the_fault_prove_no_recovery() -> None:
    availability = fed(*connected(1, "fra"), *sent(0, 900, None), *KILL,
                       h.Ack(1020 * MS, 0, "0.900-x", "stored"))  # fmt: skip
    assert availability.outages[0].rto_us() is None


def test_too_few_recovered() -> None:
    acks = [event for n in range(98) for event in sent(n, 1100, 2000)]
    assert fed(*connected(100, "fra"), *KILL, *acks).outages[0].rto_us() is None
    acks += sent(98, 1100, 2500)
    assert fed(*connected(100, "fra"), *KILL, *acks).outages[0].rto_us() == 1500 * MS


def test_a_victim_without_clients_recovers_at_once() -> None:
    assert fed(*connected(3, "iad"), *KILL).outages[0].rto_us() == 0


def test_switchover_gap_failed_sends_and_when_all_had_moved() -> None:
    start, end = h.Fault(5000 * MS, "fra", "switchover"), h.Fault(8000 * MS, "fra", "done")
    compose = h.Compose(6000 * MS, 1, 0, "f-x", 0)
    availability = fed(
        *connected(2, "fra"), h.Connection(0, 2, "iad", "g"),
        *sent(0, 1000, 4900),  # long ago
        h.Compose(4800 * MS, 0, 0, "a-x", 0), start, h.Ack(5900 * MS, 0, "a-x", "stored"),
        h.Connection(5500 * MS, 0, "", ""), h.Connection(6000 * MS, 0, "iad", "g"),
        compose, h.SendFailed(6100 * MS, 1, "f-x", "full"),
        h.Connection(7000 * MS, 1, "sin", "g"), end,
        *sent(0, 9000, 12000),  # after the move
    )  # fmt: skip
    move = availability.moves[0]
    assert (move.gap, move.failed, move.moved_us()) == (1100 * MS, 1, 2000 * MS)


def test_a_client_that_never_moved_or_came_back() -> None:
    start = h.Fault(5000 * MS, "fra", "switchover")
    availability = fed(*connected(2, "fra"), start, h.Connection(6000 * MS, 0, "iad", "g"))
    assert availability.moves[0].moved_us() is None
    availability.feed(h.Connection(6500 * MS, 1, "iad", "g"))
    assert availability.moves[0].moved_us() == 1500 * MS
    availability.feed(h.Connection(6600 * MS, 1, "fra", "g"))
    assert availability.moves[0].moved_us() is None


def test_what_fails_after_a_move_or_for_a_lost_connection_is_not_the_moves() -> None:
    availability = fed(
        *connected(1, "fra"), h.Fault(5000 * MS, "fra", "switchover"),
        h.Connection(5100 * MS, 0, "iad", "g"), h.Connection(5200 * MS, 0, "", ""),
        h.Fault(6000 * MS, "fra", "done"),
        h.Compose(6500 * MS, 0, 0, "f-x", 0), h.SendFailed(6600 * MS, 0, "f-x", "full"),
        h.SendFailed(6600 * MS, 0, "unknown-x", "full"), h.Ack(6700 * MS, 0, "unknown-x", "stored"),
        h.Connection(7000 * MS, 0, "fra", "g"),  # given back: the move is over
    )  # fmt: skip
    move = availability.moves[0]
    assert (move.failed, move.gap, move.moved_us()) == (0, 0, 100 * MS)


def test_a_failback_moves_nobody_away_and_other_marks_are_no_moves() -> None:
    availability = fed(
        *connected(2, "fra"), h.Fault(0, "fra", "done"), h.Fault(1, "fra", "failback"),
        h.Fault(2, "fra", "restart"), h.Fault(9, "fra", "done"), h.Fault(10, "fra", "other"),
    )  # fmt: skip
    (move,) = availability.moves
    assert (move.what, move.to_move, move.ended) == ("failback", set(), 9)
    assert not availability.outages


def test_rpo_tells_delayed_from_lost() -> None:
    log: list[h.Event] = [
        *[event for n in range(4) for event in sent(n, 500 + n, 900)],
        *KILL,
        *sent(5, 1200, 1300),
        h.Login(4000 * MS, 0, "ann", "iad", "rpo"),
        h.View(4000 * MS, 0, 0, ["0.500-x"]),
        h.Login(4000 * MS, 1, "ann", "sin", "rpo"),
        h.View(4000 * MS, 1, 0, ["1.501-x"]),
        h.Login(9000 * MS, 2, "ann", "iad", "final"),
        h.View(9000 * MS, 2, 0, ["0.500-x", "1.501-x", "2.502-x"]),
    ]
    rpo = fed(*log).rpo()
    assert rpo is not None
    assert (rpo.looked_at, rpo.delayed, rpo.lost) == (4, 1, 1)
    assert fed(*log[:-6]).rpo() is None


def test_idcs_that_are_lost_together_each_have_their_own_outage() -> None:
    found = Availability()
    for event in (
        h.Connection(0, 0, "fra", "g"),
        h.Connection(0, 1, "iad", "g"),
        h.Fault(10, "fra", "kill"),
        h.Fault(11, "iad", "kill"),
        h.Fault(12, "fra", "killed"),
        h.Fault(13, "iad", "killed"),
        h.Compose(20, 0, 0, "0-x", 0),
        h.Ack(30, 0, "0-x", "stored"),
        h.Compose(21, 1, 0, "1-x", 0),
        h.Ack(41, 1, "1-x", "stored"),
    ):
        found.feed(event)
    assert [outage.rto_us() for outage in found.outages] == [20, 30]


def test_a_send_that_is_never_answered_is_a_gap_until_the_end() -> None:
    move = [h.Fault(5_000 * MS, "fra", "switchover"), h.Fault(8_000 * MS, "fra", "done")]
    quiet = h.Quiet(40_000 * MS, ["fra", "iad"])
    hangs = fed(*connected(1, "fra"), move[0], *sent(0, 6_000, None), move[1], quiet)
    assert hangs.moves[0].gap == 34_000 * MS
    gone = fed(*connected(1, "fra"), move[0], *sent(0, 6_000, None), h.Closed(7_000 * MS, 0),
               move[1], quiet)  # fmt: skip
    assert gone.moves[0].gap == 0
