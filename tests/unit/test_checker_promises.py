"""The judge of policies, cursors, own writes and replicas: of each a history that keeps the promise
and one that breaks it, told by the events that break it."""

from __future__ import annotations

from collections.abc import Sequence

from imcore import history as h
from imcore.checker import Kind, Report, check_events
from imcore.checker.unread import SPREAD_US

A, B, C = (h.seal(number, "text")[0] for number in range(3))
IDCS = ["fra", "iad"]


def talk(*lines: h.Event, final: tuple[str, ...] = (A, B), after: Sequence[h.Event] = ()) -> Report:
    """Ann, at fra, has written A and B, which stand so in her view and in bob's, who is at fra too;
    then these lines; then all is quiet. ``after``: what follows the fresh logins."""
    log: list[h.Event] = [
        h.Conversation(0, 0, "d:ann:bob"),
        h.Device(0, 0, "ann", "phone"),
        h.Device(0, 1, "bob", "phone"),
        h.Connection(0, 0, "fra", "fra-gw-1"),
        h.Connection(0, 1, "fra", "fra-gw-1"),
        h.Member(0, 0, "ann", True),
        h.Member(0, 0, "bob", True),
    ]
    for t, tag in ((10, A), (20, B)):
        log += [h.Compose(t, 0, 0, tag, t // 10 - 1), h.Shown(t + 1, 0, 0, tag, t // 10 - 1, False)]
        log += [h.Ack(t + 2, 0, tag, "stored"), h.Shown(t + 3, 1, 0, tag, t // 10 - 1, False)]
    log += [*lines, h.Quiet(900, IDCS)]
    for n, idc in enumerate(IDCS, start=100):
        log += [h.Login(910, n, "bob", idc, "final"), h.View(910, n, 0, list(final))]
    return check_events([*log, *after])


# --------------------------------------------------------------------------- policies


def test_policies_that_only_rise_are_clean() -> None:
    report = talk(
        h.Policy(30, "fra", 1, "a"),
        h.Policy(31, "fra", 3, "c"),
        h.Policy(32, "iad", 1, "a"),  # another IDC may be behind
        h.Policy(33, "fra", 3, "c"),
        h.Policy(34, "the ipconf of fra", 2, ""),
        h.Policy(35, "iad", 3, "c"),
    )
    assert report.clean, report.as_json()
    assert report.counts.policies == 6


def test_an_epoch_that_goes_back_is_told_with_both_answers() -> None:
    report = talk(
        h.Policy(30, "fra", 3, "c"), h.Policy(31, "iad", 2, "b"), h.Policy(32, "fra", 2, "b")
    )
    assert report.violations == {Kind.EPOCH_BACK: 1}
    assert report.total("policy_wrong") == 1 and report.exit_code == 1
    assert report.examples[Kind.EPOCH_BACK] == [
        "fra said epoch 2 at 32 µs, and epoch 3 at 30 µs, which was earlier."
    ]


def test_two_contents_of_one_epoch() -> None:
    report = talk(
        h.Policy(30, "fra", 2, ""), h.Policy(31, "fra", 2, "b"), h.Policy(32, "iad", 2, "x")
    )
    assert report.violations == {Kind.EPOCH_DISPUTED: 1}
    assert report.examples[Kind.EPOCH_DISPUTED] == [
        "Epoch 2 is b at fra (31 µs) and x at iad (32 µs)."
    ]


# --------------------------------------------------------------------------- writers


def test_places_that_rise_with_their_clock_are_clean() -> None:
    report = talk(
        h.Placed(30, 0, A, "fra.1", 1, 100),
        h.Placed(31, 0, B, "fra.1", 2, 101),
        h.Placed(32, 0, A, "fra.1", 1, 100),  # acked again, where it stands
        h.Placed(33, 0, C, "fra.2", 1, 50),  # another life of the IDC, another log
    )
    assert report.clean, report.as_json()
    assert report.counts.placed == 4


def test_one_place_for_two_messages_is_two_writers() -> None:
    report = talk(h.Placed(30, 0, A, "fra.1", 7, 100), h.Placed(31, 0, B, "fra.1", 7, 101))
    assert report.violations == {Kind.PLACE_TWICE: 1}
    assert report.total("two_writers") == 1 and report.exit_code == 1
    assert report.examples[Kind.PLACE_TWICE] == [
        f"{A} and {B} were both acked as fra.1 7 of conversation 0 (30 µs, 31 µs)."
    ]


def test_a_clock_that_goes_back_while_the_seq_rises_is_two_writers_whatever_came_first() -> None:
    report = talk(h.Placed(30, 0, B, "fra.1", 8, 100), h.Placed(31, 0, A, "fra.1", 6, 100))
    assert report.violations == {Kind.CLOCK_BACK: 1}
    assert "from 100 to 100" in report.examples[Kind.CLOCK_BACK][0]


# --------------------------------------------------------------------------- unread counts


def unread(first: int, second: int, *lines: h.Event) -> Report:
    """Bob's fresh logins at the two IDCs are told these counts of what ann has sent: A, B."""
    counts = zip((100, 101), (first, second), strict=True)
    return talk(*lines, after=[h.Unread(911, n, 0, count) for n, count in counts])


def test_unread_is_what_others_sent_above_the_highest_cursor_that_was_answered() -> None:
    assert unread(2, 2).counts.unread == 2
    read: list[h.Event] = [
        h.Read(30, 1, 0, B, 1),
        h.ReadDone(31, 1),
        h.Read(32, 1, 0, A, 2),
        h.ReadDone(33, 2),
    ]
    for report in (unread(2, 2), unread(0, 0, *read), unread(1, 1, *read[2:])):
        assert report.clean, report.as_json()
    report = unread(0, 1, *read)
    assert report.violations == {Kind.UNREAD_WRONG: 1}
    assert report.total("session_broken") == 1 and report.exit_code == 1
    assert report.examples[Kind.UNREAD_WRONG] == [
        "bob's fresh login at iad is told 1 unread of d:ann:bob, where bob has read up to "
        f"{B} and 0 are above."
    ]
    assert unread(2, 2, *read[2:]).violations == {Kind.UNREAD_WRONG: 2}


def test_a_cursor_that_was_not_answered_may_count_or_not() -> None:
    read: list[h.Event] = [h.Read(30, 1, 0, A, 1), h.ReadDone(31, 1), h.Read(32, 1, 0, B, 2)]
    assert unread(1, 0, *read).clean
    assert unread(2, 0, *read).violations == {Kind.UNREAD_WRONG: 1}


def test_a_cursor_may_be_lost_with_the_idc_that_answered_it() -> None:
    read: list[h.Event] = [h.Read(30, 1, 0, B, 1), h.ReadDone(31, 1)]
    assert unread(0, 2, *read, h.Fault(40, "fra", "wipe")).clean
    assert unread(0, 1, *read, h.Fault(40, "fra", "wipe")).violations == {Kind.UNREAD_WRONG: 1}
    assert unread(0, 2, *read, h.Fault(40, "iad", "wipe")).violations == {Kind.UNREAD_WRONG: 1}
    late = h.Fault(32 + SPREAD_US, "fra", "wipe")
    assert unread(0, 2, *read, late).violations == {Kind.UNREAD_WRONG: 1}


def test_a_recalled_message_and_ones_own_are_not_unread() -> None:
    asked: list[h.Event] = [h.Change(30, 0, 0, B, 7, "recall", ""), h.ChangeDone(31, 7)]
    asked += [h.Says(32, n, 0, B, "", []) for n in (0, 1)]
    said: list[h.Event] = [h.ViewSays(911, n, 0, B, "", []) for n in (100, 101)]
    told: list[h.Event] = [h.Unread(912, n, 0, 1) for n in (100, 101)]
    report = talk(*asked, after=[*said, *told])
    assert report.clean, report.as_json()
    mine: list[h.Event] = [h.Login(920, 102, "ann", "fra", "final"), h.View(920, 102, 0, [A, B])]
    mine += [h.ViewSays(920, 102, 0, B, "", [])]
    assert talk(*asked, after=[*said, *told, *mine, h.Unread(921, 102, 0, 0)]).clean
    found = talk(*asked, after=[*said, *told, *mine, h.Unread(921, 102, 0, 1)])
    assert found.violations == {Kind.UNREAD_WRONG: 1}


def test_of_who_came_later_and_of_what_moved_nothing_is_known() -> None:
    away: list[h.Event] = [h.Member(30, 0, "bob", False), h.Member(31, 0, "bob", True)]
    report = unread(7, 7, *away)
    assert report.clean and not report.counts.unread
    moved: list[h.Event] = [h.Read(30, 1, 0, B, 1), h.ReadDone(31, 1), h.Moved(32, 1, 0, B, 1, 0)]
    report = unread(7, 7, *moved, h.Moved(33, 1, 0, B, 0, 1))
    assert not report.counts.unread and Kind.UNREAD_WRONG not in report.violations


# --------------------------------------------------------------------------- cursors


def test_cursors_that_only_rise_are_clean() -> None:
    report = talk(
        h.Cursor(30, 1, 0, A, "bob"),
        h.Cursor(31, 1, 0, B, "ann"),
        h.Cursor(32, 1, 0, A, "bob"),  # told again
        h.Cursor(33, 1, 0, B, "bob"),
        h.Cursor(34, 0, 0, A, "bob"),  # another device is told of its own accord
    )
    assert report.clean, report.as_json()
    assert report.counts.cursors == 5


def test_a_cursor_that_goes_back() -> None:
    report = talk(
        h.Cursor(30, 1, 0, B, "bob"), h.Cursor(31, 1, 0, A, "bob"), h.Cursor(32, 1, 0, B, "bob")
    )
    assert report.violations == {Kind.CURSOR_BACK: 1}
    assert report.total("session_broken") == 1
    assert report.examples[Kind.CURSOR_BACK] == [
        f"bob/phone was told that bob had read up to {A}, after {B}, which stands below it in "
        "d:ann:bob."
    ]


def late(*lines: h.Event) -> Report:
    """C comes late, to stand between the two."""
    news: list[h.Event] = [h.Compose(30, 1, 0, C, 0), h.Ack(31, 1, C, "stored")]
    news += [h.Shown(31, n, 0, C, 1, True) for n in (0, 1)]
    return talk(*news, *lines, final=(A, C, B))


def test_a_cursor_at_a_late_message_goes_back_too() -> None:
    told = h.Cursor(32, 0, 0, B, "bob"), h.Cursor(33, 0, 0, C, "bob")
    assert late(*told).violations == {Kind.CURSOR_BACK: 1}
    assert late(*reversed(told)).clean


def test_a_cursor_at_a_message_that_moved_tells_nothing() -> None:
    """It named where the message stood then."""
    news: list[h.Event] = [h.Compose(30, 1, 0, C, 0), h.Ack(31, 1, C, "stored")]
    news += [h.Shown(31, n, 0, C, 2, False) for n in (0, 1)]
    news += [h.Cursor(32, 0, 0, C, "bob")]
    news += [h.Moved(33, n, 0, C, 2, 1) for n in (0, 1)]
    report = talk(*news, h.Cursor(34, 0, 0, B, "bob"), h.Cursor(35, 0, 0, C, "bob"),
                  final=(A, C, B))  # fmt: skip
    assert report.clean, report.as_json()


# --------------------------------------------------------------------------- own writes


def unseen(*between: h.Event) -> Report:
    """Ann's C is acked at fra and shown to her only after these lines."""
    return talk(
        h.Compose(30, 0, 0, C, 2), h.Ack(31, 0, C, "stored"), h.Shown(31, 1, 0, C, 2, False),
        *between, h.Shown(60, 0, 0, C, 2, False), final=(A, B, C),
    )  # fmt: skip


def test_an_own_message_may_be_shown_after_its_ack_while_the_connection_lasts() -> None:
    report = unseen()
    assert report.clean, report.as_json()
    assert report.counts.own_looked_for == 3


def test_an_own_message_is_in_the_view_when_the_connection_changes() -> None:
    report = unseen(h.Connection(40, 0, "", ""), h.Connection(50, 0, "fra", "fra-gw-1"))
    assert report.violations == {Kind.OWN_UNSEEN: 1}
    assert report.examples[Kind.OWN_UNSEEN] == [
        f"ann/phone had {C} acked at fra (31 µs) and had not been shown it when its connection "
        "changed at 40 µs."
    ]


def look(t: int, *found: str, uid: str = "ann", idc: str = "fra", since: int = 40) -> list[h.Event]:
    return [
        h.Looking(since, 1, idc),
        h.Login(t, 1, uid, idc, "rpo"),
        h.View(t, 1, 0, list(found)),
    ]


def test_a_look_where_a_message_was_acked_and_shown_has_it() -> None:
    assert talk(*look(50, A, B)).clean
    report = talk(*look(50, B))
    assert report.violations == {Kind.OWN_UNSEEN: 1}
    assert report.examples[Kind.OWN_UNSEEN] == [
        f"ann's look at fra, begun at 40 µs, lacks {A}, acked there at 12 µs and shown there to "
        "bob/phone at 13 µs."
    ]


def test_what_a_look_may_lack() -> None:
    assert talk(*look(50, idc="iad")).clean  # another IDC
    assert talk(*look(50, since=5)).clean  # begun before
    assert talk(*look(50)[1:]).clean  # not recorded when it began
    assert talk(*look(50, uid="eve")).clean  # no member
    assert talk(h.Fault(30, "fra", "kill"), *look(50)).clean
    assert talk(*look(50)[:1], h.Fault(45, "fra", "kill"), *look(50)[1:]).clean


# --------------------------------------------------------------------------- replicas


def test_replicas_that_are_equal_are_clean() -> None:
    report = talk(h.Replica(30, "fra", "abc"), h.Replica(30, "iad", "abc"))
    assert report.clean and report.counts.replicas == 2


def test_replicas_that_differ() -> None:
    report = talk(h.Replica(30, "fra", "abc"), h.Replica(30, "iad", "abd"))
    assert report.violations == {Kind.REPLICAS_DIFFER: 1}
    assert report.examples[Kind.REPLICAS_DIFFER] == ["In the end fra holds abc and iad holds abd."]


# --------------------------------------------------------------------------- changes

E1, E2 = (h.seal(number, "edited")[0] for number in (7, 8))


def change(t: int, n: int, what: str, value: str, ask: int | None = None) -> h.Change:
    return h.Change(t, n, 0, A, t if ask is None else ask, what, value)


def says(n: int, content: str, *reactions: str) -> h.Says:
    return h.Says(500, n, 0, A, content, list(reactions))


def logins_say(content: str, *reactions: str) -> list[h.Event]:
    return [h.ViewSays(950, n, 0, A, content, list(reactions)) for n in (100, 101)]


def changed(*lines: h.Event, last: Sequence[h.Event]) -> Report:
    """As ``talk``; then ``last`` follows what the fresh logins found."""
    return talk(*lines, after=last)


def all_say(content: str, *reactions: str) -> tuple[list[h.Event], list[h.Event]]:
    told: list[h.Event] = [says(n, content, *reactions) for n in (0, 1)]
    return told, logins_say(content, *reactions)


def test_changes_that_all_show_alike_are_clean() -> None:
    told, last = all_say(E2, "+1 bob")
    report = changed(
        change(30, 0, "edit", E1), h.ChangeDone(31, 30), change(32, 0, "edit", E2),
        h.ChangeDone(33, 32), change(34, 1, "react", "+1"), h.ChangeDone(35, 34), *told, last=last,
    )  # fmt: skip
    assert report.clean, report.as_json()
    assert report.counts.changes == 3


def test_an_edit_that_one_device_lacks_is_told() -> None:
    report = changed(change(30, 0, "edit", E1), says(0, E1), last=logins_say(E1))
    assert report.violations == {Kind.CHANGES_DIFFER: 1}
    assert f"at bob/phone's view it says {A}" in report.examples[Kind.CHANGES_DIFFER][0]


def test_an_answered_edit_must_not_be_undone_by_an_earlier_one() -> None:
    told, last = all_say(E1)
    first, second = change(30, 0, "edit", E1), change(32, 0, "edit", E2)
    report = changed(first, second, h.ChangeDone(33, 32), *told, last=last)
    assert report.violations == {Kind.CHANGE_LOST: 1}
    assert changed(first, second, *told, last=last).clean  # it was never answered
    # Another device's, which knew of the first; and one that did not.
    other = change(32, 1, "edit", E2), h.ChangeDone(33, 32)
    report = changed(first, h.Says(31, 1, 0, A, E1, []), *other, *told, last=last)
    assert report.violations == {Kind.CHANGE_LOST: 1}
    assert changed(first, *other, *told, last=last).clean


def test_an_answered_recall_stands_and_one_that_nobody_asked_for_does_not() -> None:
    recall = change(30, 0, "recall", ""), h.ChangeDone(31, 30)
    told, last = all_say("")
    assert changed(*recall, *told, last=last).clean
    assert changed(*told, last=last).violations == {Kind.CHANGE_PHANTOM: 1}
    assert changed(*recall, last=[]).violations == {Kind.CHANGE_LOST: 1}


def test_the_last_word_on_a_reaction_counts() -> None:
    told, last = all_say(A, "+1 bob")
    on, off = change(30, 1, "react", "+1"), change(32, 1, "unreact", "+1")
    assert changed(on, off, *told, last=last).clean  # neither was answered
    report = changed(on, off, h.ChangeDone(33, 32), *told, last=last)
    assert report.violations == {Kind.CHANGE_LOST: 1}
    assert changed(*told, last=last).violations == {Kind.CHANGE_PHANTOM: 1}
