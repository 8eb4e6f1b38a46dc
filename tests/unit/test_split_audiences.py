"""What a front is told of huge groups is what it needs, and no more."""

from __future__ import annotations

from collections import Counter

from hypothesis import given
from hypothesis import strategies as st

from imcore.proto import front_pb2 as front
from services.ports import Audience
from services.split.audiences import KEPT, Audiences

UIDS = tuple(f"u{number:05}" for number in range(10_000))


class There:
    """A front, as its core and itself see it."""

    def __init__(self, grows: bool = True) -> None:
        self.users: Counter[str] = Counter()
        self.told: list[front.Audience] = []
        self.audiences = Audiences(self.users, self._hear, grows)
        self.numbers: dict[int, set[str]] = {}
        self._of: dict[str, int] = {}

    def _hear(self, told: front.Audience) -> None:
        self.told.append(told)
        if told.joined:
            self.numbers[told.number] |= set(told.uids)
            return
        self.numbers.pop(self._of.pop(told.conversation, 0), None)
        if told.number:
            self._of[told.conversation] = told.number
            self.numbers[told.number] = set(told.uids)

    def toggle(self, uid: str) -> None:
        if uid in self.users:
            del self.users[uid]
        else:
            self.users[uid] = 1
        self.audiences.changed(uid)

    def reach(self, audience: Audience) -> set[str]:
        """Who is pushed to."""
        number = self.audiences.number(audience)
        return {uid for uid in self.numbers[number] if uid in self.users} if number else set()


GROUPS = (Audience("g:1", UIDS[:30]), Audience("g:2", UIDS[10:40]), Audience("g:1", UIDS[:20]))
steps = st.lists(st.one_of(st.sampled_from(UIDS[:50]), st.sampled_from(GROUPS)), max_size=80)


@given(steps, st.booleans())
def test_whoever_is_there_and_a_member_is_reached(steps: list[str | Audience], grows: bool) -> None:
    there = There(grows)
    for step in steps:
        if isinstance(step, str):
            there.toggle(step)
        else:
            assert there.reach(step) == set(step.uids) & set(there.users)
            assert there.audiences.reached(step) == len(set(step.uids) & set(there.users))
    assert grows or not any(told.joined for told in there.told)


def test_a_group_that_talks_while_its_members_come_back_names_each_once() -> None:
    there, group = There(), Audience("g:huge", UIDS)
    for uid in UIDS:
        there.toggle(uid)
        there.audiences.reached(group)
        there.audiences.number(group)
    for _ in range(2):  # and while they go and come again
        for uid in UIDS:
            there.toggle(uid)
            there.audiences.number(group)
    assert sum(len(told.uids) for told in there.told) == len(UIDS)
    assert there.reach(group) == set(UIDS)


def test_of_more_groups_than_it_keeps_the_front_forgets_the_first() -> None:
    there = There()
    there.toggle(UIDS[0])
    for number in range(KEPT + 3):
        there.reach(Audience(f"g:{number}", UIDS[:2]))
    assert len(there.numbers) == KEPT


def test_of_one_batch_no_group_pushes_out_another() -> None:
    there = There()
    there.toggle(UIDS[0])
    groups = [Audience(f"g:{number}", UIDS[:2]) for number in range(KEPT)]
    for group in groups:
        there.reach(group)
    numbers = [there.audiences.number(group) for group in (groups[0], Audience("g:new", UIDS[:2]))]
    assert all(number in there.numbers for number in numbers)
