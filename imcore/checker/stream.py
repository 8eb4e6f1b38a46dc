"""The judgements that need no end of the run: made line by line as the history streams by.

Shown twice, never composed, altered, in a wrong conversation, a sender's own order inverted at
any time, an index that contradicts the view. Late insertions and moves are legal and counted.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from imcore import history as h
from imcore.checker.changed import Changes
from imcore.checker.policies import Policies
from imcore.checker.sessions import Sessions
from imcore.checker.state import (
    NEVER,
    ConversationState,
    DeviceState,
    LoginState,
    Message,
    State,
    ViewState,
)
from imcore.checker.unread import Unread
from imcore.checker.verdict import Kind, Report
from imcore.checker.words import Words
from imcore.checker.writers import Writers

UNKNOWN_SENDER = -1


class Stream:
    """``feed`` every event in the order of the file; then ``state`` holds what the final
    judgement needs. Raises ValueError for a line that makes no sense where it stands."""

    def __init__(self, report: Report) -> None:
        self.report = report
        self.state = State()
        self._sessions = Sessions(self.state, report)
        self.writers = Writers(report)
        self.changes = Changes(self.state, report)
        self.unread = Unread(self.state, report)
        self.words = Words(self.state, report)
        self._handlers: dict[type, Callable[[Any], None]] = {
            h.Device: self._device,
            h.Closed: self._closed,
            h.Conversation: self._conversation,
            h.Member: self._member,
            h.Compose: self._compose,
            h.Ack: self._ack,
            h.Placed: self.writers.feed,
            h.SendFailed: self._send_failed,
            h.Shown: self._shown,
            h.Moved: self._moved,
            h.Quiet: self._quiet,
            h.Login: self._login,
            h.View: self._view,
            h.Cursor: self._cursor,
            h.Connection: self._connection,
            h.Fault: self._fault,
            h.Looking: self._sessions.looking,
            h.Policy: Policies(report).feed,
            h.Replica: self._replica,
            h.Change: self.changes.change,
            h.ChangeDone: self.changes.done,
            h.Says: self.changes.says,
            h.ViewSays: self._view_says,
            h.Read: self.unread.read,
            h.ReadDone: self.unread.done,
            h.Unread: self.unread.unread,
            h.Word: self.words.word,
            h.WordDone: self.words.done,
            h.Stands: self.words.stands,
        }

    def feed(self, event: h.Event) -> None:
        handler = self._handlers.get(type(event))
        if handler is None:
            return
        try:
            handler(event)
        except (KeyError, IndexError, TypeError) as error:
            raise ValueError(f"refers to what was not declared: {event}") from error

    # ------------------------------------------------------------------- declarations

    def _device(self, event: h.Device) -> None:
        senders = self.state.senders
        sender = senders.setdefault((event.uid, event.device), len(senders))
        name = f"{event.uid}/{event.device}"
        self.state.devices[event.n] = DeviceState(name, event.uid, event.t, sender)
        self.report.counts.devices += 1

    def _closed(self, event: h.Closed) -> None:
        self.state.devices[event.n].closed = True

    def _conversation(self, event: h.Conversation) -> None:
        self.state.conversations[event.c] = ConversationState(event.id)
        self.report.counts.conversations += 1

    def _member(self, event: h.Member) -> None:
        intervals = self.state.conversations[event.c].members.setdefault(event.uid, [])
        if event.joined:
            intervals.append([event.t, NEVER])
        elif intervals and intervals[-1][1] == NEVER:
            intervals[-1][1] = event.t

    def _quiet(self, event: h.Quiet) -> None:
        self.state.quiet_idcs = list(event.idcs)
        self.report.finished = True

    def _login(self, event: h.Login) -> None:
        self._sessions.login(event)
        if event.purpose != "final":
            return
        name = f"{event.uid}'s fresh login at {event.idc}"
        self.state.logins[event.n] = LoginState(name, event.uid, event.idc)
        self.report.counts.logins += 1

    def _connection(self, event: h.Connection) -> None:
        self._sessions.connection(event)
        self.words.connection(event)

    def _fault(self, event: h.Fault) -> None:
        self._sessions.fault(event)
        self.unread.fault(event)

    def _view_says(self, event: h.ViewSays) -> None:
        self.changes.view_says(event)
        self.unread.view_says(event)

    def _replica(self, event: h.Replica) -> None:
        self.state.replicas[event.idc] = event.hash
        self.report.counts.replicas += 1

    def _view(self, event: h.View) -> None:
        self._sessions.view(event)
        login = self.state.logins.get(event.n)
        if login is None:  # of a login that is not judged
            return
        login.views[event.c] = [self._known(tag, event.c, login.name) for tag in event.tags]

    # ------------------------------------------------------------------- sending

    def _compose(self, event: h.Compose) -> None:
        state = self.state
        sender = state.devices[event.n].sender
        own = state.own_counts.get((sender, event.c), 0)
        state.own_counts[sender, event.c] = own + 1
        message = Message(event.tag, event.c, sender, own, event.t)
        number = state.by_tag.get(event.tag, len(state.messages))
        if number == len(state.messages):
            self._add(message)
        elif state.messages[number].sender == UNKNOWN_SENDER:
            state.messages[number] = message  # it had been shown first: reported as a phantom
        else:
            raise ValueError(f"{event.tag} is composed a second time")
        view = state.view(event.n, event.c)
        if not 0 <= event.seen <= len(view.shown):
            raise ValueError(f"{event.tag} had seen {event.seen} of {len(view.shown)} shown")
        view.composed.append((number, event.seen))
        self.report.counts.composed += 1

    def _add(self, message: Message) -> int:
        state = self.state
        number = len(state.messages)
        state.messages.append(message)
        state.by_tag[message.tag] = number
        if message.sender != UNKNOWN_SENDER:
            state.by_number[message.tag.partition("-")[0]] = number
        state.conversations[message.conversation].messages.append(number)
        return number

    def _ack(self, event: h.Ack) -> None:
        number = self.state.by_tag[event.tag]
        message = self.state.messages[number]
        if message.acked == NEVER:
            message.acked = event.t
            self._sessions.acked(event.n, number)
            self.report.counts.acked += 1
            self.report.counts.degraded += event.how == "degraded"

    def _send_failed(self, event: h.SendFailed) -> None:
        self.report.counts.failed += 1

    # ------------------------------------------------------------------- showing

    def _known(self, tag: str, conversation: int, where: str) -> int:
        """The message of a tag that turned up; what is wrong with it is reported."""
        state = self.state
        number = state.by_tag.get(tag)
        if number is None:
            original = state.by_number.get(tag.partition("-")[0])
            if original is None:
                self.report.found(Kind.PHANTOM, f"{where} has {tag}, which nobody composed.")
                return self._add(Message(tag, conversation, UNKNOWN_SENDER, 0, NEVER))
            self.report.found(
                Kind.ALTERED,
                f"{where} has {tag}, but it was composed as {state.place(original)}.",
            )
            number = original
        message = state.messages[number]
        if message.conversation != conversation:
            self.report.found(
                Kind.STRAY,
                f"{where} has {tag} in {state.conversations[conversation].id}, "
                f"composed in {state.conversations[message.conversation].id}.",
            )
        return number

    def _shown(self, event: h.Shown) -> None:
        counts = self.report.counts
        counts.shown += 1
        device = self.state.devices[event.n]
        view = self.state.view(event.n, event.c)
        number = self.state.by_tag.get(event.tag)
        if number is None or self.state.messages[number].conversation != event.c:
            number = self._known(event.tag, event.c, device.name)
        message = self.state.messages[number]
        bit = 1 << view.bit
        if message.conversation == event.c:
            if message.shown_mask & bit:
                self.report.found(
                    Kind.SHOWN_TWICE, f"{device.name} was shown {event.tag} more than once."
                )
            message.shown_mask |= bit
            if message.acked_at and not message.held and message.acked_at == device.idc:
                self._sessions.held(device, number, event.t)
        view.shown.append(number)
        end = len(view.order)
        index = event.at
        if not 0 <= index <= end:
            self.report.found(
                Kind.MISPLACED,
                f"{device.name} was shown {event.tag} at index {index} of a view of {end}.",
            )
            index = end
        if index < end:
            counts.late += 1
        self._insert(device, view, number, index)

    def _moved(self, event: h.Moved) -> None:
        self.report.counts.moved += 1
        device = self.state.devices[event.n]
        view = self.state.view(event.n, event.c)
        number = self.state.by_tag.get(event.tag, UNKNOWN_SENDER)
        view.moved.add(number)
        order = view.order
        origin = event.origin
        if not (0 <= origin < len(order) and order[origin] == number):
            self.report.found(
                Kind.MISPLACED,
                f"{device.name} was told that {event.tag} moved from index {origin}, "
                f"where it did not stand.",
            )
            if number not in order:
                return
            origin = order.index(number)
        del order[origin]
        target = event.target
        if not 0 <= target <= len(order):
            self.report.found(
                Kind.MISPLACED,
                f"{device.name} was told that {event.tag} moved to index {target} "
                f"of a view of {len(order)}.",
            )
            target = len(order)
        self._insert(device, view, number, target)

    def _cursor(self, event: h.Cursor) -> None:
        self.report.counts.cursors += 1
        number = self.state.by_tag.get(event.tag)
        view = self.state.conversations[event.c].views.get(event.n)
        if number is not None and view is not None:  # else it was shown nothing that could be read
            view.cursors.append((event.uid, number))

    def _insert(self, device: DeviceState, view: ViewState, number: int, index: int) -> None:
        """Put it in and judge its sender's own order around it. The usual case, at the end and
        above all of that sender's shown so far, costs one look-up."""
        message = self.state.messages[number]
        top = view.top.get(message.sender, -1)
        appended_on_top = index == len(view.order) and message.own > top
        view.order.insert(index, number)
        view.top[message.sender] = max(top, message.own)
        if appended_on_top:
            return
        before = self._neighbour(view.order, index, -1, message.sender)
        after = self._neighbour(view.order, index, 1, message.sender)
        wrong = None
        if before is not None and before.own > message.own:
            wrong = (before, message)
        elif after is not None and after.own < message.own:
            wrong = (message, after)
        if wrong:
            self.report.found(
                Kind.OWN_ORDER,
                f"{device.name} was shown {wrong[0].tag} before {wrong[1].tag}, "
                f"which its sender had composed first.",
            )

    def _neighbour(self, order: list[int], index: int, step: int, sender: int) -> Message | None:
        index += step
        while 0 <= index < len(order):
            message = self.state.messages[order[index]]
            if message.sender == sender:
                return message
            index += step
        return None
