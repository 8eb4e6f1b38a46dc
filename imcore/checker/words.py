"""Words on friends, settings and groups: what stands in the end is the last word, in every IDC.

A word stands until a later one is said. One device's own words come one after the other; which of
two devices' words is the later one cannot be told from outside, so the last of each may stand, and
all that a device said after the last that it was answered. Words on friends and settings have the
order that their device gave them, however often and wherever they are asked for. Those on groups
have the place at which an IDC took them: of two that waited for their answers together either may
be the later one, and one whose connection changed while it waited may be taken once more, for a
while, by an IDC that it was asked of first.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from imcore import history as h
from imcore.checker.changed import last_words
from imcore.checker.state import State
from imcore.checker.verdict import Kind, Report

INITIAL = {"pin": "off", "mute": "off", "role": "member", "member": "out"}
OWN = {"friend", "pin", "mute"}  # what each user has for himself; the rest is the group's
BY_PLACE = {"name", "announcement", "owner", "role", "member"}
LATE_US = 25_000_000  # what was asked so long ago waits in no IDC, nor in a paused one, any more
WANTS = {"request", "accept"}
ENDS = {"decline", "remove", "block"}
BLOCKS = {"block", "unblock"}


class Register(NamedTuple):
    """Of which one word stands. ``uid``: whose it is; empty: a group's."""

    kind: str
    uid: str
    about: str

    def sentence(self) -> str:
        of = f" of {self.uid}" if self.uid else ""
        return f"{self.kind}{of} about {self.about}"


@dataclass(slots=True)
class Said:
    """``connections``: so often its device's had changed when it was said. ``answered``:
    and what was asked is not under way any more."""

    n: int
    t: int
    ask: int
    value: str
    connections: int
    answered: bool = False
    done: int = 0  # when it was answered

    def taken_until(self) -> int:
        """Where its place counts: what was said after that stands behind it."""
        return self.done if self.answered else self.t + LATE_US

    def after(self, other: Said) -> bool:
        """For sure."""
        return self.n == other.n and self.ask > other.ask


class Words:
    """Fed in the order of the history; ``judge`` at its end. Raises KeyError for what was not
    declared."""

    def __init__(self, state: State, report: Report) -> None:
        self._state = state
        self._report = report
        self._said: dict[Register, dict[int, list[Said]]] = {}  # by device, in order
        self._asks: dict[int, tuple[str, Said]] = {}
        self._connections: dict[int, int] = {}
        self._found: dict[Register, dict[str, str]] = {}  # by login

    def word(self, event: h.Word) -> None:
        register = _register(event.kind, self._state.devices[event.n].uid, event.about)
        said = Said(event.n, event.t, event.ask, event.value, self._connections.get(event.n, 0))
        self._said.setdefault(register, {}).setdefault(event.n, []).append(said)
        self._asks[event.ask] = event.kind, said
        self._report.counts.words += 1

    def done(self, event: h.WordDone) -> None:
        kind, said = self._asks[event.ask]
        same = self._connections.get(said.n, 0) == said.connections
        said.answered, said.done = same or kind not in BY_PLACE, event.t

    def connection(self, event: h.Connection) -> None:
        self._connections[event.n] = self._connections.get(event.n, 0) + 1

    def stands(self, event: h.Stands) -> None:
        login = self._state.logins.get(event.n)
        if login is not None:  # else it is not judged
            register = _register(event.kind, login.uid, event.about)
            self._found.setdefault(register, {})[login.name] = event.value

    # ---------------------------------------------------------------------------- the end

    def judge(self) -> None:
        if self._state.quiet_idcs is None:
            return
        for register, found in self._found.items():
            self._report.counts.stands += len(found)
            self._judge(register, found)

    def _judge(self, register: Register, found: dict[str, str]) -> None:
        (first, value), *others = found.items()
        judged = self._friend if register.kind == "friend" else self._of
        said, possible = judged(register)
        if value not in possible:
            kind = Kind.WORD_LOST if value in said else Kind.WORD_PHANTOM
            self._report.found(
                kind,
                f"{first} finds {value or 'nothing'} as {register.sentence()}, where by the words "
                f"that were answered it is {' or '.join(sorted(possible)) or 'nothing'}.",
            )
        for name, other in others:
            if other != value:
                self._report.found(
                    Kind.WORDS_DIFFER,
                    f"As {register.sentence()}, {first} finds {value or 'nothing'} and {name} "
                    f"{other or 'nothing'}.",
                )

    def _of(self, register: Register) -> tuple[set[str], set[str]]:
        """Every value that was ever said, and those that may stand."""
        by_device = self._said.get(register, {}).values()
        said = {each.value for words in by_device for each in words}
        said.add(INITIAL.get(register.kind, ""))
        return said, _last(by_device, register.kind in BY_PLACE) or said

    def _friend(self, register: Register) -> tuple[set[str], set[str]]:
        """What the other may be to this user: it hangs on the words of both."""
        _, uid, other = register
        own = _flat(self._said.get(register, {}))
        others = _flat(self._said.get(Register("friend", other, uid), {}))
        ends = [each for each in (*own, *others) if each.value in ENDS]
        relations = {
            _STATES[wants, wanted]
            for wants in _wanting(own, ends)
            for wanted in _wanting(others, ends)
        }
        blocks: dict[int, list[Said]] = {}
        for each in own:
            if each.value in BLOCKS:
                blocks.setdefault(each.n, []).append(each)
        ever = {each.value for each in own} & BLOCKS | {"unblock"}
        now = _last(blocks.values(), by_place=False) or ever
        possible = {"blocked"} if "block" in now else set()
        if "unblock" in now:
            possible |= relations
        said = {
            _STATES[wants, wanted]
            for wants in (False, any(each.value in WANTS for each in own))
            for wanted in (False, any(each.value in WANTS for each in others))
        }
        return said | ({"blocked"} if "block" in ever else set()), possible


_STATES = {
    (True, True): "friend",
    (True, False): "asked",
    (False, True): "asking",
    (False, False): "",
}


def _register(kind: str, uid: str, about: str) -> Register:
    return Register(kind, uid if kind in OWN else "", about)


def _last(by_device: Collection[list[Said]], by_place: bool) -> set[str]:
    """What of it may stand. Empty: nothing is sure, so anything may."""
    if not by_place:
        return last_words(by_device)
    possible: set[str] = set()
    for words in by_device:
        sure = max((each.t for each in words if each.answered), default=0)
        possible.update(each.value for each in words if each.t >= sure or each.taken_until() > sure)
    return possible if any(each.answered for words in by_device for each in words) else set()


def _flat(by_device: Mapping[int, list[Said]]) -> list[Said]:
    return [each for words in by_device.values() for each in words]


def _wanting(words: Iterable[Said], ends: Sequence[Said]) -> list[bool]:
    """Whether one of these words to be friends may stand, or none. ``ends``: of either side."""
    wants = [each for each in words if each.value in WANTS]
    found: list[bool] = []
    if any(not any(end.answered and end.after(each) for end in ends) for each in wants):
        found.append(True)
    if not any(each.answered and all(each.after(end) for end in ends) for each in wants):
        found.append(False)
    return found
