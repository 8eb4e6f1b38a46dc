"""The judge: good histories are clean, and every planted violation is found and named."""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from imcore import history as h
from imcore.checker import Kind, Report, check_events
from imcore.checker.latency import Latencies, summarize
from imcore.checker.order import disagreements

IDCS = ["fra", "iad"]
SENDERS = [("ann", "phone"), ("ann", "laptop"), ("bob", "phone"), ("cy", "phone")]
Events = list[h.Event]


def good_history(seed: int, messages: int = 60) -> Events:
    """Four devices of three users in one conversation, the messages of each sender arriving in
    order but late, some never acked, some moved to an earlier place after they were shown."""
    rng = random.Random(seed)
    log: Events = [h.Conversation(0, 0, "g:1"), h.Phase(0, "steady")]
    log += [h.Device(0, n, uid, device) for n, (uid, device) in enumerate(SENDERS)]
    log += [h.Member(0, 0, uid, True) for uid in ("ann", "bob", "cy")]
    views: list[list[tuple[float, int, str]]] = [[] for _ in SENDERS]
    queues: list[list[list[tuple[float, int, str]]]] = [[[] for _ in SENDERS] for _ in SENDERS]
    seen = [0] * len(SENDERS)
    clock = [0.0] * len(SENDERS)
    moves: dict[str, tuple[float, int, str]] = {}
    now = 0

    def insert(n: int, entry: tuple[float, int, str]) -> int:
        at = sum(other < entry for other in views[n])
        views[n].insert(at, entry)
        return at

    def deliver(n: int, source: int) -> None:
        entry = queues[n][source].pop(0)
        clock[n] = max(clock[n], entry[0])
        at = insert(n, entry)
        log.append(h.Shown(now, n, 0, entry[2], at, at < len(views[n]) - 1))
        seen[n] += 1

    def correct(n: int, tag: str) -> None:
        entry = next((entry for entry in views[n] if entry[2] == tag), None)
        if entry and entry != moves[tag]:
            origin = views[n].index(entry)
            views[n].pop(origin)
            log.append(h.Moved(now, n, 0, tag, origin, insert(n, moves[tag])))

    for number in range(messages):
        now += 1000
        n = rng.randrange(len(SENDERS))
        clock[n] += 1
        tag, _ = h.seal(number, f"body {number}")
        log.append(h.Compose(now, n, 0, tag, seen[n]))
        entry = (clock[n] + 0.5, n, tag)
        if rng.random() < 0.1:
            moves[tag] = (clock[n] + 0.25, n, tag)
        for receiver in range(len(SENDERS)):
            queues[receiver][n].append(entry)
        if rng.random() < 0.9:
            log.append(h.Ack(now + 400, n, tag, "stored"))
        else:
            log.append(h.SendFailed(now + 400, n, tag, "timeout"))
        for _ in range(rng.randrange(6)):
            receiver, source = rng.randrange(len(SENDERS)), rng.randrange(len(SENDERS))
            if queues[receiver][source]:
                deliver(receiver, source)
    now += 1000
    for n in range(len(SENDERS)):
        for source in range(len(SENDERS)):
            while queues[n][source]:
                deliver(n, source)
        for tag in moves:
            correct(n, tag)
    log.append(h.Quiet(now, IDCS))
    tags = [entry[2] for entry in views[0]]
    for number, (uid, idc) in enumerate((uid, idc) for uid in ("ann", "bob") for idc in IDCS):
        log.append(h.Login(now, number, uid, idc, "final"))
        log.append(h.View(now, number, 0, list(tags)))
    return log


def judge(events: Events) -> Report:
    return check_events(events)


@pytest.mark.parametrize("seed", range(20))
def test_a_good_history_is_clean(seed: int) -> None:
    report = judge(good_history(seed))
    assert report.clean and report.exit_code == 0, report.as_json()
    assert report.counts.composed == 60
    assert report.counts.shown == 240
    assert report.counts.views == 8


def test_late_insertions_and_moves_are_legal_and_counted() -> None:
    log = good_history(3)
    late = sum(isinstance(event, h.Shown) and event.late for event in log)
    moved = sum(isinstance(event, h.Moved) for event in log)
    counts = judge(log).counts
    assert late > 0 and moved > 0
    assert (counts.late, counts.moved) == (late, moved)
    assert counts.unacked_present == counts.failed > 0


# --------------------------------------------------------------------- planted violations


def tagged(log: Events, acked: bool = True) -> list[str]:
    acks = {event.tag for event in log if isinstance(event, h.Ack)}
    return [e.tag for e in log if isinstance(e, h.Compose) and (e.tag in acks) == acked]


def final_tags(log: Events) -> list[str]:
    return next(event.tags for event in log if isinstance(event, h.View))


def edit_login(log: Events, edit: Callable[[list[str]], None], login: int = 2) -> None:
    edit(next(event.tags for event in log if isinstance(event, h.View) and event.n == login))


def edit_all_logins(log: Events, edit: Callable[[list[str]], None]) -> None:
    for login in range(4):
        edit_login(log, edit, login)


def drop_shown(log: Events, tag: str, device: int) -> Events:
    """The device is never shown it; the indexes of its later lines follow. Without moves."""
    kept: Events = []
    view: list[str] = []  # with the dropped message
    for event in log:
        if isinstance(event, h.Shown) and event.n == device:
            hidden = tag in view[: event.at]
            view.insert(event.at, event.tag)
            if event.tag != tag:
                kept.append(event._replace(at=event.at - hidden))
        elif isinstance(event, h.Compose) and event.n == device:
            kept.append(event._replace(seen=event.seen - (tag in view)))
        else:
            kept.append(event)
    return kept


def no_moves(seed: int = 1) -> Events:
    """A good history without moves, so that index arithmetic stays readable."""
    while True:
        log = good_history(seed)
        if not any(isinstance(event, h.Moved) for event in log):
            return log
        seed += 100


def test_missing_from_a_devices_view() -> None:
    log = no_moves()
    tag = tagged(log)[-1]
    report = judge(drop_shown(log, tag, 3))
    assert set(report.violations) == {Kind.MISSING}
    assert report.total("missing") == 1 and report.exit_code == 1
    assert report.examples[Kind.MISSING] == [f"cy/phone's view lacks {tag}, which was acked."]


def test_missing_from_a_fresh_login() -> None:
    log = good_history(5)
    tag = tagged(log)[4]
    edit_login(log, lambda tags: tags.remove(tag))
    report = judge(log)
    assert report.violations == {Kind.MISSING: 1}
    assert report.examples[Kind.MISSING] == [
        f"bob's fresh login at fra lacks {tag}, which was acked."
    ]


def test_a_members_device_that_was_never_shown_anything_lacks_everything() -> None:
    log = minimal(*composed(1, 0, A), *composed(2, 0, B), *shown(3, A, 0), *shown(4, B, 1),
                  final=[A, B])  # fmt: skip
    log[2:2] = [h.Member(0, 0, "eve", True), h.Device(0, 9, "eve", "phone")]
    report = judge(log)
    assert report.violations == {Kind.MISSING: 2}
    assert report.examples[Kind.MISSING][0].startswith("eve/phone's view lacks")


def test_an_unacked_message_in_some_views_only() -> None:
    log = good_history(5)
    tag = tagged(log, acked=False)[0]
    edit_login(log, lambda tags: tags.remove(tag))
    report = judge(log)
    assert report.violations == {Kind.UNEVEN: 1}
    assert report.total("out_of_order") == 1


def test_an_unacked_message_absent_everywhere_is_legal() -> None:
    log = good_history(5)
    log.insert(-9, h.Compose(1, 0, 0, h.seal(999, "x")[0], 0))
    report = judge(log)
    assert report.clean


def test_shown_twice() -> None:
    log = good_history(6)
    quiet = next(n for n, event in enumerate(log) if isinstance(event, h.Quiet))
    tag = final_tags(log)[-1]
    log.insert(quiet, h.Shown(10**9, 1, 0, tag, 60, False))
    report = judge(log)
    assert report.violations == {Kind.SHOWN_TWICE: 1}
    assert report.total("duplicate") == 1
    assert report.examples[Kind.SHOWN_TWICE] == [f"ann/laptop was shown {tag} more than once."]


def test_standing_twice_in_a_fresh_login() -> None:
    log = good_history(6)
    edit_all_logins(log, lambda tags: tags.insert(1, tags[0]))
    report = judge(log)
    assert report.violations == {Kind.STANDS_TWICE: 4}


def concurrent_pair(log: Events) -> tuple[str, str]:
    """Neighbours of two senders, neither of whom had been shown the other's."""
    tags = final_tags(log)
    shown: dict[int, list[str]] = {n: [] for n in range(4)}
    known: dict[str, set[str]] = {}
    sender: dict[str, int] = {}
    for event in log:
        if isinstance(event, h.Shown):
            shown[event.n].append(event.tag)
        elif isinstance(event, h.Compose):
            known[event.tag] = set(shown[event.n][: event.seen])
            sender[event.tag] = event.n
    for first, second in itertools.pairwise(tags):
        if first not in known[second] and sender[first] != sender[second]:
            return first, second
    raise AssertionError("the generator made no concurrent neighbours")


def swap(tags: list[str], first: str, second: str) -> None:
    a, b = tags.index(first), tags.index(second)
    tags[a], tags[b] = tags[b], tags[a]


def test_views_that_differ_on_one_pair() -> None:
    log = good_history(7)
    first, second = concurrent_pair(log)
    edit_login(log, lambda tags: swap(tags, first, second))
    report = judge(log)
    assert report.violations == {Kind.VIEWS_DIFFER: 1}
    assert first in report.examples[Kind.VIEWS_DIFFER][0]
    assert "bob's fresh login at fra" in report.examples[Kind.VIEWS_DIFFER][0]


def test_a_devices_view_that_differs_from_all_others() -> None:
    log = no_moves(8)
    first, _ = concurrent_pair(log)
    at = final_tags(log).index(first)
    quiet = next(n for n, event in enumerate(log) if isinstance(event, h.Quiet))
    log.insert(quiet, h.Moved(10**9, 2, 0, first, at, at + 1))
    report = judge(log)
    assert report.violations == {Kind.VIEWS_DIFFER: 1}


def minimal(*lines: h.Event, final: list[str]) -> Events:
    """Ann and bob, one device each, and what a fresh login of each finds in each IDC."""
    log: Events = [h.Conversation(0, 0, "d:ann:bob"), h.Device(0, 0, "ann", "phone")]
    log += [h.Device(0, 1, "bob", "phone"), h.Member(0, 0, "ann", True)]
    log += [h.Member(0, 0, "bob", True), *lines, h.Quiet(10**6, IDCS)]
    for number, idc in enumerate(IDCS):
        log += [h.Login(10**6, number, "ann", idc, "final"), h.View(10**6, number, 0, list(final))]
    return log


def composed(t: int, n: int, tag: str, seen: int = 0) -> Events:
    return [h.Compose(t, n, 0, tag, seen), h.Ack(t + 1, n, tag, "stored")]


def shown(t: int, tag: str, at: int) -> Events:
    return [h.Shown(t, n, 0, tag, at, False) for n in (0, 1)]


A, B, C = (h.seal(number, "text")[0] for number in range(3))


def test_the_smallest_good_history() -> None:
    log = minimal(*composed(1, 0, A), *composed(3, 0, B), *shown(5, A, 0), *shown(6, B, 1),
                  final=[A, B])  # fmt: skip
    assert judge(log).clean


def test_own_order_inverted_in_every_final_view() -> None:
    log = minimal(*composed(1, 0, A), *composed(3, 0, B), *shown(5, B, 0), *shown(6, A, 1),
                  final=[B, A])  # fmt: skip
    report = judge(log)
    # each device was shown it inverted, and the (one distinct) fresh login stands inverted
    assert report.violations == {Kind.OWN_ORDER: 3}
    assert "ann's fresh login at fra has" in report.examples[Kind.OWN_ORDER][2]


def test_own_order_inverted_for_a_moment_only() -> None:
    shuffled: Events = [
        h.Shown(5, 1, 0, B, 0, False),
        h.Shown(6, 1, 0, A, 1, False),
        h.Moved(7, 1, 0, A, 1, 0),
    ]
    log = minimal(*composed(1, 0, A), *composed(3, 0, B), h.Shown(5, 0, 0, A, 0, False),
                  h.Shown(5, 0, 0, B, 1, False), *shuffled, final=[A, B])  # fmt: skip
    report = judge(log)
    assert report.violations == {Kind.OWN_ORDER: 1}
    assert report.examples[Kind.OWN_ORDER] == [
        f"bob/phone was shown {B} before {A}, which its sender had composed first."
    ]


def test_own_order_inverted_by_a_late_insertion() -> None:
    late: Events = [h.Shown(9, n, 0, C, 1, True) for n in (0, 1)]
    log = minimal(*composed(1, 0, A), *composed(2, 0, B), *composed(3, 0, C), *shown(5, A, 0),
                  *shown(6, B, 1), *late, final=[A, C, B])  # fmt: skip
    report = judge(log)
    assert report.violations == {Kind.OWN_ORDER: 3}
    assert C in report.examples[Kind.OWN_ORDER][0] and B in report.examples[Kind.OWN_ORDER][0]


def test_own_order_holds_across_two_applications_of_one_device() -> None:
    again: Events = [h.Closed(4, 0), h.Device(4, 2, "ann", "phone"), *composed(5, 2, B)]
    log = minimal(*composed(1, 0, A), *again, h.Shown(7, 1, 0, B, 0, False),
                  h.Shown(8, 1, 0, A, 1, False), h.Shown(8, 2, 0, B, 0, False),
                  final=[B, A])  # fmt: skip
    report = judge(log)
    assert report.violations[Kind.OWN_ORDER] == 2


def test_an_answer_before_its_question() -> None:
    log = minimal(*composed(1, 0, A), *shown(3, A, 0), *composed(5, 1, B, seen=1),
                  *shown(7, B, 0),
                  final=[B, A])  # fmt: skip
    report = judge(log)
    assert report.violations == {Kind.ANSWER_FIRST: 1}
    assert f"has {B} before {A}" in report.examples[Kind.ANSWER_FIRST][0]


def test_what_was_shown_after_composing_is_no_question() -> None:
    log = minimal(*composed(1, 0, A), *composed(2, 1, B, seen=0), *shown(3, A, 0),
                  *shown(7, B, 0),
                  final=[B, A])  # fmt: skip
    assert judge(log).clean


def test_a_phantom_in_a_view_and_in_a_login() -> None:
    log = minimal(*composed(1, 0, A), *shown(3, A, 0), *shown(4, C, 1), final=[A, C, B])
    report = judge(log)
    assert report.violations == {Kind.PHANTOM: 2}
    assert report.examples[Kind.PHANTOM][0] == f"ann/phone has {C}, which nobody composed."


def test_shown_before_it_is_composed_is_a_phantom() -> None:
    log = minimal(*shown(1, A, 0), *composed(3, 0, A), final=[A])
    assert judge(log).violations == {Kind.PHANTOM: 1}


def test_altered_content() -> None:
    tag, content = h.seal(0, "text")
    altered = h.tag_of(content.replace(b"text", b"test"))
    log = minimal(*composed(1, 0, A), h.Shown(3, 0, 0, A, 0, False),
                  h.Shown(3, 1, 0, altered, 0, False), final=[A])  # fmt: skip
    report = judge(log)
    assert tag == A == h.tag_of(content)
    assert report.violations == {Kind.ALTERED: 1}
    assert report.examples[Kind.ALTERED] == [
        f"bob/phone has {altered}, but it was composed as {A}."
    ]


def test_shown_in_another_conversation() -> None:
    log = minimal(h.Conversation(0, 1, "g:2"), *composed(1, 0, A), *shown(3, A, 0),
                  h.Shown(4, 1, 1, A, 0, False), final=[A])  # fmt: skip
    report = judge(log)
    assert report.violations == {Kind.STRAY: 1}
    assert "in g:2, composed in d:ann:bob" in report.examples[Kind.STRAY][0]


@pytest.mark.parametrize("line", [h.Shown(5, 1, 0, B, 7, False), h.Shown(5, 1, 0, B, -1, False)])
def test_an_index_outside_the_view(line: h.Shown) -> None:
    log = minimal(*composed(1, 0, A), *composed(2, 0, B), *shown(3, A, 0), line,
                  h.Shown(5, 0, 0, B, 1, False), final=[A, B])  # fmt: skip
    assert judge(log).violations == {Kind.MISPLACED: 1}


@pytest.mark.parametrize(("origin", "target"), [(0, 1), (5, 1), (1, 9)])
def test_a_move_that_contradicts_the_view(origin: int, target: int) -> None:
    log = minimal(*composed(1, 0, A), *composed(2, 0, B), *shown(3, A, 0), *shown(4, B, 1),
                  h.Moved(5, 1, 0, B, origin, target), final=[A, B])  # fmt: skip
    assert judge(log).violations == {Kind.MISPLACED: 1}


def test_an_idc_where_nobody_looked() -> None:
    log = good_history(1)
    log = [e for e in log if not (isinstance(e, h.Login) and e.idc == "iad")]
    report = judge([e for e in log if not (isinstance(e, h.View) and e.n in (1, 3))])
    assert report.violations == {Kind.UNPROVEN: 1}
    assert report.examples[Kind.UNPROVEN] == ["No fresh login at iad looked at g:1."]


def test_without_the_quiet_mark_nothing_is_proven() -> None:
    log = good_history(2)
    end = next(n for n, event in enumerate(log) if isinstance(event, h.Quiet))
    report = judge(log[:end])
    assert not report.clean and report.exit_code == 2
    assert "no quiet mark" in report.sentence()
    under_way: Events = [h.Conversation(0, 0, "d"), h.Device(0, 0, "ann", "phone")]
    report = judge([*under_way, h.Member(0, 0, "ann", True), *composed(1, 0, A)])
    assert not report.violations


# --------------------------------------------------------------------- membership


def with_late_joiner(joined: int, left: int | None, has: list[str]) -> Events:
    lines: Events = [*composed(1, 0, A), *shown(3, A, 0), h.Member(joined, 0, "eve", True)]
    lines += [h.Device(0, 5, "eve", "phone"), *composed(100, 0, B), *shown(103, B, 1)]
    if left is not None:
        lines.append(h.Member(left, 0, "eve", False))
    lines += [*composed(200, 1, C, seen=2), *shown(203, C, 2)]
    lines += [h.Shown(300, 5, 0, tag, at, False) for at, tag in enumerate(has)]
    return minimal(*lines, final=[A, B, C])


@pytest.mark.parametrize(
    ("left", "has", "missing"),
    [
        (None, [B, C], []),
        (None, [A, B, C], []),
        (None, [B], [C]),
        (None, [C], [B]),
        (150, [B], []),
        (150, [], [B]),
        (150, [B, C], []),
    ],
)
def test_what_is_demanded_of_a_late_joiner(
    left: int | None, has: list[str], missing: list[str]
) -> None:
    report = judge(with_late_joiner(50, left, has))
    assert report.violations.get(Kind.MISSING, 0) == len(missing)
    assert report.violations.total() == len(missing)
    for tag in missing:
        assert f"eve/phone's view lacks {tag}" in report.examples[Kind.MISSING][0]


def test_a_closed_device_need_not_be_complete() -> None:
    log = minimal(*composed(1, 0, A), *composed(2, 0, B), *shown(3, A, 0), h.Closed(4, 1),
                  h.Shown(5, 0, 0, B, 1, False), final=[A, B])  # fmt: skip
    assert judge(log).clean


def test_a_closed_devices_order_is_judged_all_the_same() -> None:
    log = minimal(*composed(1, 0, A), *shown(3, A, 0), *composed(5, 1, B, seen=1), h.Closed(6, 1),
                  h.Shown(7, 0, 0, B, 0, False), final=[B, A])  # fmt: skip
    assert judge(log).violations == {Kind.ANSWER_FIRST: 1}


# --------------------------------------------------------------------- shuffles


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 10_000), st.randoms(use_true_random=False))
def test_any_other_permutation_in_one_login_is_found(seed: int, rng: random.Random) -> None:
    log = good_history(seed, messages=12)
    original = list(final_tags(log))
    edit_login(log, rng.shuffle)
    changed = next(e.tags for e in log if isinstance(e, h.View) and e.n == 2) != original
    assert bool(judge(log).violations[Kind.VIEWS_DIFFER]) == changed


@given(st.lists(st.lists(st.integers(0, 7), unique=True, max_size=8), max_size=4))
@settings(max_examples=200, deadline=None)
def test_order_agrees_with_brute_force(views: list[list[int]]) -> None:
    """One order fits all views exactly when no chain of neighbours leads back to its start."""
    before = {(a, b) for view in views for n, a in enumerate(view) for b in view[n + 1 :]}
    for middle in range(8):
        before |= {
            (a, b) for a in range(8) for b in range(8)
            if (a, middle) in before and (middle, b) in before
        }  # fmt: skip
    fits = not any((item, item) in before for item in range(8))
    assert (disagreements(views) == []) == fits


@pytest.mark.parametrize(
    ("views", "fits"),
    [
        ([[1, 2, 3], [1, 3]], True),
        ([[1, 2], [3, 4], [2, 3]], True),
        ([[1, 2], [2, 3], [3, 4], [4, 1]], False),
        ([[1, 2, 9], [2, 3], [3, 4], [4, 5], [5, 2]], False),
        ([[5, 6], [1, 2], [2, 1]], False),
        ([[1, 2, 3, 4], [7, 2], [3, 8, 7]], False),
        ([[1, 2, 3, 4], [7, 8], [8, 9]], True),
    ],
)
def test_one_order_for_views_that_share_only_some(views: list[list[int]], fits: bool) -> None:
    assert (disagreements(views) == []) == fits


def test_a_ring_of_views_is_named() -> None:
    """No two views disagree, yet no one order fits the three: late joiners with parts of it."""
    lines: Events = [*composed(1, 0, A), *composed(1, 1, B), h.Device(0, 2, "cy", "phone")]
    lines += [*composed(1, 2, C), h.Member(5, 0, "cy", True)]
    parts = {0: [A, B], 1: [B, C], 2: [C, A]}
    for n, tags in parts.items():
        lines += [h.Shown(9, n, 0, tag, at, False) for at, tag in enumerate(tags)]
    log: Events = [
        event for event in minimal(*lines, final=[]) if not isinstance(event, h.View | h.Quiet)
    ]
    report = judge(log)
    assert report.violations == {Kind.VIEWS_DIFFER: 1}
    assert report.examples[Kind.VIEWS_DIFFER][0].startswith("No single order fits all views: ")


# --------------------------------------------------------------------- what does not count


def test_a_login_right_after_a_failover_is_not_judged() -> None:
    log = minimal(*composed(1, 0, A), *shown(3, A, 0), h.Login(4, 7, "ann", "fra", "rpo"),
                  h.View(4, 7, 0, []), final=[A])  # fmt: skip
    report = judge(log)
    assert report.clean and report.counts.logins == 2


def test_a_second_ack_changes_nothing() -> None:
    log = minimal(*composed(1, 0, A), h.Ack(900, 0, A, "degraded"), *shown(3, A, 0), final=[A])
    counts = judge(log).counts
    assert (counts.acked, counts.degraded) == (1, 0)


def test_only_the_first_of_two_leaves_counts() -> None:
    leaves = [h.Member(t, 0, "bob", False) for t in (10, 5000)]
    log = minimal(leaves[0], *composed(100, 0, A), leaves[1],
                  h.Shown(300, 0, 0, A, 0, False), final=[A])  # fmt: skip
    assert judge(log).clean


def test_a_phantom_does_not_make_another_one_an_alteration() -> None:
    log = minimal(*composed(1, 0, A), *shown(3, A, 0), *shown(4, C, 1),
                  h.Shown(5, 0, 0, C[:2] + "else", 2, False), final=[A])  # fmt: skip
    assert judge(log).violations == {Kind.PHANTOM: 2}


def test_a_move_of_what_was_never_shown() -> None:
    log = minimal(*composed(1, 0, A), *composed(2, 0, B), *shown(3, A, 0),
                  h.Moved(4, 1, 0, B, 0, 0), *shown(5, B, 1), final=[A, B])  # fmt: skip
    report = judge(log)
    assert report.violations == {Kind.MISPLACED: 1}
    assert "where it did not stand" in report.examples[Kind.MISPLACED][0]


def test_a_move_from_a_wrong_index_still_takes_place() -> None:
    log = minimal(*composed(1, 0, A), *composed(2, 1, B), *shown(3, B, 0), *shown(4, A, 1),
                  h.Moved(5, 0, 0, A, 1, 0), h.Moved(5, 1, 0, A, 0, 0), final=[A, B])  # fmt: skip
    assert judge(log).violations == {Kind.MISPLACED: 1}


def test_the_verdict_in_one_line_and_as_json() -> None:
    log = good_history(4)
    assert judge(log).sentence().endswith("nothing missing, nothing twice, one order")
    for tag in tagged(log)[:7]:
        edit_all_logins(log, lambda tags, tag=tag: tags.remove(tag))  # type: ignore[misc]
    report = judge(log)
    assert report.sentence().endswith("28 missing")
    document = report.as_json()
    assert document["totals"]["missing"] == 28  # type: ignore[index]
    assert len(report.examples[Kind.MISSING]) == 5


# --------------------------------------------------------------------- latencies


def test_percentiles_by_nearest_rank() -> None:
    assert summarize([]) == (0, 0.0, 0.0, 0.0)
    assert summarize([3000]) == (1, 3.0, 3.0, 3.0)
    assert summarize([n * 1000 for n in range(200, 0, -1)]) == (200, 100.0, 198.0, 200.0)


def test_latencies_by_phase() -> None:
    latencies = Latencies()
    log: Events = [
        h.Phase(0, "before"),
        h.Compose(1_000, 0, 0, A, 0),
        h.Phase(2_000, "during"),
        h.Ack(3_000, 0, A, "stored"),
        h.Shown(3_100, 0, 0, A, 0, False),
        h.Shown(5_000, 1, 0, A, 0, False),
        h.Compose(6_000, 0, 0, B, 0),
        h.Ack(6_500, 0, B, "stored"),
        h.Ack(9_000, 0, B, "replicated"),
        h.Fault(9_500, "fra", "kill"),
    ]
    for event in log:
        latencies.feed(event)
    before, during = latencies.phases
    assert (before.name, before.composed, before.acked) == ("before", 1, 1)
    assert list(before.ack_us) == [2_000] and list(before.receive_us) == [4_000]
    assert list(during.ack_us) == [500] and not during.receive_us
