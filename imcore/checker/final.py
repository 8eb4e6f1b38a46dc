"""The judgement at the end, conversation by conversation: what is missing, and one order for all.

Only a history with its quiet mark is judged here for what is missing; before that a message may
simply be under way.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from imcore.checker.order import disagreements
from imcore.checker.state import NEVER, ConversationState, Message, State
from imcore.checker.verdict import Kind, Report


@dataclass(slots=True)
class Standing:
    """One final view. ``since``: what was composed earlier is not demanded of it (µs)."""

    name: str
    uid: str
    since: int
    order: list[int]
    items: set[int] = field(init=False)

    def __post_init__(self) -> None:
        self.items = set(self.order)


class Final:
    def __init__(self, state: State, report: Report) -> None:
        self.state = state
        self.report = report

    def judge(self) -> None:
        for number, conversation in self.state.conversations.items():
            standings = self._devices(conversation)
            logins = self._logins(number, conversation)
            self._stands_twice(logins)
            if self.state.quiet_idcs is not None:
                self._unproven(number, conversation, self.state.quiet_idcs)
                self._missing(conversation, [*standings, *logins])
                self._uneven(conversation, [*standings, *logins])
                self.report.counts.views += len(standings) + len(logins)
            distinct = _distinct([*standings, *logins])
            self._views_differ(distinct)
            self._own_order(_distinct(logins))
            self._answer_first(conversation, distinct)
            self._cursors_back(conversation)
        self._replicas()

    # ------------------------------------------------------------------- which views there are

    def _devices(self, conversation: ConversationState) -> list[Standing]:
        """The views of the members' devices that are still open, empty ones too."""
        standings = []
        for number, device in self.state.devices.items():
            view = conversation.views.get(number)
            if device.closed or (view is None and device.uid not in conversation.members):
                continue
            order = view.order if view else []
            standings.append(Standing(f"{device.name}'s view", device.uid, device.opened, order))
        return standings

    def _logins(self, number: int, conversation: ConversationState) -> list[Standing]:
        return [
            Standing(login.name, login.uid, -1, login.views[number])
            for login in self.state.logins.values()
            if number in login.views
        ]

    def _unproven(self, number: int, conversation: ConversationState, idcs: list[str]) -> None:
        if not any(self._message(item).acked != NEVER for item in conversation.messages):
            return
        seen = {login.idc for login in self.state.logins.values() if number in login.views}
        for idc in idcs:
            if idc not in seen:
                self.report.found(
                    Kind.UNPROVEN, f"No fresh login at {idc} looked at {conversation.id}."
                )

    # ------------------------------------------------------------------- what stands there

    def _message(self, number: int) -> Message:
        return self.state.messages[number]

    def _stands_twice(self, logins: list[Standing]) -> None:
        for standing in logins:
            if len(standing.items) == len(standing.order):
                continue
            seen: set[int] = set()
            for number in standing.order:
                if number in seen:
                    self.report.found(
                        Kind.STANDS_TWICE, f"{standing.name} has {self._tag(number)} twice."
                    )
                seen.add(number)

    def _missing(self, conversation: ConversationState, standings: list[Standing]) -> None:
        acked = {item for item in conversation.messages if self._message(item).acked != NEVER}
        for standing in standings:
            for number in sorted(acked - standing.items):
                if self._demanded(conversation, standing, self._message(number)):
                    self.report.found(
                        Kind.MISSING, f"{standing.name} lacks {self._tag(number)}, which was acked."
                    )

    def _demanded(
        self, conversation: ConversationState, standing: Standing, message: Message
    ) -> bool:
        return message.composed >= standing.since and conversation.demanded(
            standing.uid, message.composed, message.acked
        )

    def _uneven(self, conversation: ConversationState, standings: list[Standing]) -> None:
        """An unacked message may be there or not, but alike for all who were members then."""
        held: dict[int, Standing] = {}
        for standing in standings:
            for number in standing.order:
                message = self._message(number)
                if message.acked == NEVER and message.sender >= 0:  # a phantom is named already
                    held.setdefault(number, standing)
        for number, holder in held.items():
            lacking = [
                standing
                for standing in standings
                if number not in standing.items
                and self._demanded(conversation, standing, self._message(number))
            ]
            for standing in lacking:
                self.report.found(
                    Kind.UNEVEN,
                    f"{standing.name} lacks {self._tag(number)} (never acked), "
                    f"which {holder.name} has.",
                )
            self.report.counts.unacked_present += not lacking

    # ------------------------------------------------------------------- in which order

    def _views_differ(self, distinct: list[Standing]) -> None:
        for found in disagreements([standing.order for standing in distinct]):
            first, second = self._tag(found.first), self._tag(found.second)
            left = distinct[found.left].name
            if found.right < 0:
                sentence = f"No single order fits all views: {left} has {first} before {second}."
            else:
                right = distinct[found.right].name
                sentence = f"{left} has {first} before {second}, {right} the other way round."
            self.report.found(Kind.VIEWS_DIFFER, sentence)

    def _own_order(self, logins: list[Standing]) -> None:
        """Of fresh logins; devices' views are judged at every insertion (``stream``)."""
        for standing in logins:
            last: dict[int, Message] = {}
            for number in standing.order:
                message = self._message(number)
                before = last.get(message.sender)
                if message.sender >= 0 and before is not None and before.own > message.own:
                    self.report.found(
                        Kind.OWN_ORDER,
                        f"{standing.name} has {before.tag} before {message.tag}, "
                        f"which its sender had composed first.",
                    )
                last[message.sender] = message

    def _answer_first(self, conversation: ConversationState, distinct: list[Standing]) -> None:
        for standing in distinct:
            rank = {number: place for place, number in enumerate(standing.order)}
            for view in conversation.views.values():
                position = 0
                highest, question = -1, -1
                for number, seen in view.composed:
                    for shown in view.shown[position:seen]:
                        if rank.get(shown, -1) > highest:
                            highest, question = rank[shown], shown
                    position = seen
                    if rank.get(number, highest) < highest:
                        self.report.found(
                            Kind.ANSWER_FIRST,
                            f"{standing.name} has {self._tag(number)} before "
                            f"{self._tag(question)}, which its sender had been shown first.",
                        )

    # ------------------------------------------------------------------- what was told besides

    def _cursors_back(self, conversation: ConversationState) -> None:
        """A message stays where it stands relative to others, unless it is ``moved``: so the final
        order tells which of two cursors was the higher one when they were told."""
        for number, view in conversation.views.items():
            if not view.cursors:
                continue
            rank = {item: place for place, item in enumerate(view.order) if item not in view.moved}
            highest: dict[str, int] = {}
            for uid, item in view.cursors:
                if item not in rank:
                    continue
                top = highest.setdefault(uid, item)
                if rank[item] >= rank[top]:
                    highest[uid] = item
                    continue
                self.report.found(
                    Kind.CURSOR_BACK,
                    f"{self.state.devices[number].name} was told that {uid} had read up to "
                    f"{self._tag(item)}, after {self._tag(top)}, which stands below it in "
                    f"{conversation.id}.",
                )

    def _replicas(self) -> None:
        first = next(iter(self.state.replicas.items()), None)
        for idc, digest in self.state.replicas.items():
            if first is not None and digest != first[1]:
                self.report.found(
                    Kind.REPLICAS_DIFFER,
                    f"In the end {first[0]} holds {first[1]} and {idc} holds {digest}.",
                )

    def _tag(self, number: int) -> str:
        return self._message(number).tag


def _distinct(standings: list[Standing]) -> list[Standing]:
    """One of each equal order: usually there is only one."""
    kept: list[Standing] = []
    for standing in standings:
        if not any(standing.order == other.order for other in kept):
            kept.append(standing)
    return kept
