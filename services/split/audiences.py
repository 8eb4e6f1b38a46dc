"""What a front has been told of huge groups: who of their members is there. Pure but for ``put``.
``Audiences`` is kept by who tells it, ``Named`` by who is told.

A front is told once who of a group is there, under a number that later pushes go by. Who comes
after that is added. Nobody is taken out when he goes: the front knows its own sessions. So a
message costs nothing for each member, also while thousands of them come back.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import OrderedDict
from collections.abc import Callable, Collection, Container

from imcore.errors import Unavailable
from imcore.proto import front_pb2 as front
from services.ports import Audience
from services.state.changes import Changes

KEPT = 256  # groups
_CHANGES = 1_000


class _Told:
    """``named``: those whom the number means; ``number`` 0: nobody has been named yet. ``fresh``:
    who is here and not named. ``version``: up to which this is true."""

    __slots__ = ("audience", "fresh", "here", "named", "number", "version")

    def __init__(self, audience: Audience, users: Container[str], version: int) -> None:
        self.number = 0
        self.named: set[str] = set()
        self.look(audience, users, version)

    def look(self, audience: Audience, users: Container[str], version: int) -> None:
        """At every member."""
        self.audience, self.version = audience, version
        self.here = {uid for uid in audience.uids if uid in users}
        self.fresh = self.here - self.named

    def follow(self, changed: Collection[str], users: Container[str], version: int) -> None:
        """At those who have come or gone."""
        self.version = version
        for uid in changed:
            if uid not in users:
                self.here.discard(uid)
                self.fresh.discard(uid)
            elif _is_of(uid, self.audience):
                self.here.add(uid)
                if uid not in self.named:
                    self.fresh.add(uid)


class Audiences:
    """``users``: who has a session at the front. ``grows``: it can add to what it was told."""

    def __init__(
        self, users: Container[str], put: Callable[[front.Audience], None], grows: bool
    ) -> None:
        self._users = users
        self._put = put
        self._grows = grows
        self._groups: OrderedDict[str, _Told] = OrderedDict()
        self._changes = Changes(_CHANGES)
        self._last = 0  # number

    def changed(self, uid: str) -> None:
        """The first session of this user has come, or the last has gone."""
        self._changes.note(uid)

    def reached(self, audience: Audience) -> int:
        """How many of them are there."""
        return len(self._look(audience).here)

    def number(self, audience: Audience) -> int:
        """By which the front knows, from now on, all who are there. 0: nobody is."""
        told = self._look(audience)
        if told.here and told.fresh:
            named = front.Audience(conversation=audience.conversation)
            if told.number and self._grows:
                named.joined = True
            else:
                told.number = self._last = self._last + 1
                told.fresh, told.named = told.here.copy(), set()
            named.number = told.number
            named.uids.extend(sorted(told.fresh))
            told.named |= told.fresh
            told.fresh.clear()
            self._put(named)
        return told.number if told.here else 0

    def _look(self, audience: Audience) -> _Told:
        name, users, version = audience.conversation, self._users, self._changes.version
        told = self._groups.get(name)
        if told is not None:
            self._groups.move_to_end(name)  # or one of the same batch could push it out
        if told is not None and told.audience is audience:
            changed = self._changes.since(told.version)
            if changed is None:
                told.look(audience, users, version)
            elif changed:
                told.follow(changed, users, version)
            return told
        if told is not None and told.named.issubset(audience.uids):
            told.look(audience, users, version)
            return told
        # New, or somebody who was named has left, and must not be told of anything any more.
        told = self._groups[name] = _Told(audience, users, version)
        if len(self._groups) > KEPT:
            name, dropped = self._groups.popitem(last=False)
            if dropped.number:
                self._put(front.Audience(conversation=name))
        return told


class Named:
    """Whom each number means. ``grows``: an audience is appended to in its place; else who is added
    makes another one, with all of them in order."""

    def __init__(self, grows: bool = False) -> None:
        self._grows = grows
        self._audiences: dict[int, Audience] = {}
        self._numbers: dict[str, int] = {}

    def told(self, told: front.Audience) -> None:
        """Raises Unavailable."""
        if told.joined:
            self._join(told)
            return
        former = self._numbers.pop(told.conversation, None)
        if former is not None:
            del self._audiences[former]
        if told.number:
            self._numbers[told.conversation] = told.number
            self._audiences[told.number] = Audience(told.conversation, tuple(told.uids))

    def _join(self, told: front.Audience) -> None:
        audience = self.of(told.number)
        if self._grows:
            audience.joined.extend(told.uids)
        else:
            uids = tuple(sorted({*audience.uids, *told.uids}))
            self._audiences[told.number] = Audience(audience.conversation, uids)

    def of(self, number: int) -> Audience:
        """Raises Unavailable, which ends the link: the next one names everybody anew."""
        audience = self._audiences.get(number)
        if audience is None:
            raise Unavailable(f"audience {number} is named, and it was not said who that is")
        return audience


def _is_of(uid: str, audience: Audience) -> bool:
    at = bisect_left(audience.uids, uid)
    return at < len(audience.uids) and audience.uids[at] == uid
