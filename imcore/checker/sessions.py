"""Read-your-writes: what a device had acked is in what it and its IDC show later.

Judged where no lag can excuse it. A device's own acked message is in its view when its connection
next changes. And once the IDC that acked a message has shown it to another device, the
IDC has applied it: then every look at the conversation that begins there later has it, until
something is done to that IDC.
"""

from __future__ import annotations

from typing import NamedTuple

from imcore import history as h
from imcore.checker.state import DeviceState, State
from imcore.checker.verdict import Kind, Report


class _Held(NamedTuple):
    """A message, who was shown it at the IDC that had acked it, and when."""

    message: int
    device: str
    t: int


class Sessions:
    """Raises KeyError for what was not declared."""

    def __init__(self, state: State, report: Report) -> None:
        self._state = state
        self._report = report
        self._held: dict[str, dict[int, list[_Held]]] = {}  # by IDC, conversation
        self._looks: dict[int, h.Looking] = {}
        self._uids: dict[int, str] = {}  # of logins

    # ------------------------------------------------------------------- a device's own view

    def acked(self, n: int, number: int) -> None:
        device, message = self._state.devices[n], self._state.messages[number]
        message.acked_at = device.idc
        self._report.counts.own_looked_for += 1
        if not self._shown(n, number):
            device.unseen.append(number)

    def connection(self, event: h.Connection) -> None:
        device = self._state.devices[event.n]
        device.idc = event.idc
        if device.closed:
            return
        for number in device.unseen:
            if not self._shown(event.n, number):
                message = self._state.messages[number]
                self._report.found(
                    Kind.OWN_UNSEEN,
                    f"{device.name} had {message.tag} acked at {message.acked_at or 'no IDC'} "
                    f"({message.acked} µs) and had not been shown it when its connection changed "
                    f"at {event.t} µs.",
                )
        device.unseen.clear()

    def _shown(self, n: int, number: int) -> bool:
        message = self._state.messages[number]
        view = self._state.view(n, message.conversation)
        return bool(message.shown_mask & 1 << view.bit)

    # ------------------------------------------------------------------- looks at its IDC

    def held(self, device: DeviceState, number: int, t: int) -> None:
        """This device is connected to the IDC that acked the message, and was shown it now."""
        message = self._state.messages[number]
        if device.sender == message.sender:  # it knows its own message without that IDC
            return
        message.held = True
        held = self._held.setdefault(device.idc, {}).setdefault(message.conversation, [])
        held.append(_Held(number, device.name, t))

    def fault(self, event: h.Fault) -> None:
        """From here on nothing is known of what this IDC shows at once."""
        self._held.pop(event.idc, None)

    def looking(self, event: h.Looking) -> None:
        self._looks[event.n] = event

    def login(self, event: h.Login) -> None:
        self._uids[event.n] = event.uid

    def view(self, event: h.View) -> None:
        look, uid = self._looks.get(event.n), self._uids.get(event.n)
        if look is None or uid is None:  # a look's begin was not always recorded
            return
        conversation = self._state.conversations[event.c]
        found = set(event.tags)
        for held in self._held.get(look.idc, {}).get(event.c, ()):
            if held.t >= look.t:
                break
            message = self._state.messages[held.message]
            if not conversation.demanded(uid, message.composed, message.acked):
                continue
            self._report.counts.own_looked_for += 1
            if message.tag not in found:
                self._report.found(
                    Kind.OWN_UNSEEN,
                    f"{uid}'s look at {look.idc}, begun at {look.t} µs, lacks {message.tag}, "
                    f"acked there at {message.acked} µs and shown there to {held.device} "
                    f"at {held.t} µs.",
                )
