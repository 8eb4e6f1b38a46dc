"""Unread counts: what a fresh login is told after the run is what the history says.

Unread is a message of somebody else that stands above the user's read cursor and is not recalled.
The cursor is the highest of what this user's devices have said and were answered; one whose answer
is not known may count or not. An answer says that the IDC holds the word, not that any other does:
where something was done to that IDC soon afterwards, the word may be gone, so it may count or not
as well. Linear in the history's length.
"""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass

from imcore import history as h
from imcore.checker.state import NEVER, ConversationState, LoginState, State
from imcore.checker.verdict import Kind, Report

SPREAD_US = 10_000_000  # other IDCs hold a word by then


@dataclass(slots=True)
class _Read:
    """``at``: the IDC that its device was connected to."""

    uid: str
    n: int
    message: int
    at: str
    answered: int = NEVER


class Unread:
    """Raises KeyError for what was not declared."""

    def __init__(self, state: State, report: Report) -> None:
        self._state = state
        self._report = report
        self._asks: dict[int, _Read] = {}
        self._reads: dict[tuple[str, int], list[_Read]] = {}  # by uid and conversation
        self._faults: dict[str, list[int]] = {}
        self._recalled: dict[int, set[int]] = {}  # by login
        self._told: list[h.Unread] = []

    def read(self, event: h.Read) -> None:
        device = self._state.devices[event.n]
        read = _Read(device.uid, event.n, self._state.by_tag[event.tag], device.idc)
        self._asks[event.ask] = read
        self._reads.setdefault((device.uid, event.c), []).append(read)

    def done(self, event: h.ReadDone) -> None:
        read = self._asks[event.ask]
        if read.at and self._state.devices[read.n].idc == read.at:  # else who knows which answered
            read.answered = event.t

    def fault(self, event: h.Fault) -> None:
        self._faults.setdefault(event.idc, []).append(event.t)

    def view_says(self, event: h.ViewSays) -> None:
        if not event.says:
            self._recalled.setdefault(event.n, set()).add(self._state.by_tag[event.tag])

    def unread(self, event: h.Unread) -> None:
        if self._state.quiet_idcs is not None and event.n in self._state.logins:
            self._told.append(event)

    # ---------------------------------------------------------------------------- the end

    def judge(self) -> None:
        uids = {sender: uid for (uid, _), sender in self._state.senders.items()}
        moved: dict[int, set[int]] = {}
        for c, conversation in self._state.conversations.items():
            moved[c] = set().union(*(view.moved for view in conversation.views.values()))
        for told in self._told:
            login, conversation = self._state.logins[told.n], self._state.conversations[told.c]
            reads = self._reads.get((login.uid, told.c), [])
            order = login.views.get(told.c)
            if order is None or not self._always(conversation, login.uid):
                continue
            # A cursor is a place: where a message was that has moved since is not known.
            if any(read.message in moved[told.c] for read in reads):
                continue
            self._report.counts.unread += 1
            self._judge(told, login, order, reads, uids)

    def _always(self, conversation: ConversationState, uid: str) -> bool:
        """What a group said before the user came is not unread, wherever that was."""
        intervals = conversation.members.get(uid, [])
        if len(intervals) != 1 or intervals[0][1] != NEVER:
            return False
        messages = self._state.messages
        return all(messages[item].composed >= intervals[0][0] for item in conversation.messages)

    def _judge(
        self,
        told: h.Unread,
        login: LoginState,
        order: list[int],
        reads: list[_Read],
        uids: dict[int, str],
    ) -> None:
        recalled = self._recalled.get(told.n, set())
        above, rank = [0] * (len(order) + 1), {item: place for place, item in enumerate(order)}
        for place in range(len(order) - 1, -1, -1):
            item = order[place]
            theirs = uids.get(self._state.messages[item].sender) != login.uid
            above[place] = above[place + 1] + (theirs and item not in recalled)
        sure = max((rank.get(r.message, -1) for r in reads if self._holds(r)), default=-1)
        places = {sure} | {place for r in reads if (place := rank.get(r.message, -1)) > sure}
        right = sorted({above[place + 1] for place in places})
        if told.unread in right:
            return
        read = self._state.place(order[sure]) if sure >= 0 else "nothing"
        self._report.found(
            Kind.UNREAD_WRONG,
            f"{login.name} is told {told.unread} unread of "
            f"{self._state.conversations[told.c].id}, where {login.uid} has read up to {read} and "
            f"{' or '.join(map(str, right))} are above.",
        )

    def _holds(self, read: _Read) -> bool:
        """Answered, and nothing was done to that IDC until others held it too."""
        if read.answered == NEVER:
            return False
        faults = self._faults.get(read.at, [])
        after = bisect_left(faults, read.answered)
        return after == len(faults) or faults[after] > read.answered + SPREAD_US
