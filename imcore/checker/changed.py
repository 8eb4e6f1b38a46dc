"""Edits, recalls and reactions: in the end all show the same, and what was answered is not gone.

What was asked later in the knowledge of another change counts (docs/features.md). Two changes whose
devices knew nothing of each other may come to stand either way round: there nothing is judged but
that all agree.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from imcore import history as h
from imcore.checker.state import State
from imcore.checker.verdict import Kind, Report


class Saying(NamedTuple):
    """``content``: a tag; empty: recalled. ``reactions``: code and uid."""

    content: str
    reactions: tuple[str, ...]

    def sentence(self) -> str:
        said = f"says {self.content}" if self.content else "is recalled"
        return f"{said} with reactions {', '.join(self.reactions) or 'of nobody'}"


class Word(Protocol):
    value: str
    answered: bool


@dataclass(slots=True)
class Ask:
    """``told``: what its device had been told that the message says, when it asked."""

    n: int
    value: str
    told: str
    answered: bool = False


@dataclass(slots=True)
class Changed:
    """A message that somebody wants changed, or that is."""

    edits: list[Ask] = field(default_factory=list)
    recalls: list[Ask] = field(default_factory=list)
    # By code and uid: of each device what it asked for, in order.
    words: dict[str, dict[int, list[Ask]]] = field(default_factory=dict)
    devices: dict[int, Saying] = field(default_factory=dict)  # as told last
    logins: dict[int, Saying] = field(default_factory=dict)


class Changes:
    """Fed in the order of the history; ``judge`` at its end. Raises KeyError for what was not
    declared."""

    def __init__(self, state: State, report: Report) -> None:
        self._state = state
        self._report = report
        self._messages: dict[int, Changed] = {}
        self._asks: dict[int, Ask] = {}

    def _of(self, tag: str) -> Changed:
        return self._messages.setdefault(self._state.by_tag[tag], Changed())

    def change(self, event: h.Change) -> None:
        changed = self._of(event.tag)
        told = changed.devices.get(event.n, Saying(event.tag, ())).content
        ask = self._asks[event.ask] = Ask(event.n, event.value, told)
        self._report.counts.changes += 1
        if event.what == "edit":
            changed.edits.append(ask)
        elif event.what == "recall":
            changed.recalls.append(ask)
        else:
            named = f"{event.value} {self._state.devices[event.n].uid}"
            ask.value = event.what
            changed.words.setdefault(named, {}).setdefault(event.n, []).append(ask)

    def done(self, event: h.ChangeDone) -> None:
        self._asks[event.ask].answered = True

    def says(self, event: h.Says) -> None:
        self._of(event.tag).devices[event.n] = Saying(event.says, tuple(event.reactions))

    def view_says(self, event: h.ViewSays) -> None:
        if event.n in self._state.logins:  # else of a login that is not judged
            self._of(event.tag).logins[event.n] = Saying(event.says, tuple(event.reactions))

    # ---------------------------------------------------------------------------- the end

    def judge(self) -> None:
        if self._state.quiet_idcs is None:
            return
        for number, changed in self._messages.items():
            self._judge(number, changed)

    def _judge(self, number: int, changed: Changed) -> None:
        tag = self._state.messages[number].tag
        first: tuple[str, Saying] | None = None
        for name, saying in self._standing(number, changed, Saying(tag, ())):
            if first is None:
                first = name, saying
                for kind, sentence in _wrong(tag, changed, saying):
                    self._report.found(kind, f"{name}: {sentence}")
            elif saying != first[1]:
                self._report.found(
                    Kind.CHANGES_DIFFER,
                    f"At {first[0]} {tag} {first[1].sentence()}, at {name} it {saying.sentence()}.",
                )

    def _standing(
        self, number: int, changed: Changed, unchanged: Saying
    ) -> Iterator[tuple[str, Saying]]:
        """Of every fresh login and open device that has the message and is to go on with it."""
        c = self._state.messages[number].conversation
        conversation = self._state.conversations[c]
        for n, login in self._state.logins.items():
            if number in login.holds(c):
                yield login.name, changed.logins.get(n, unchanged)
        for n, view in conversation.views.items():
            device = self._state.devices[n]
            shown = self._state.messages[number].shown_mask & 1 << view.bit
            if shown and not device.closed and conversation.stays(device.uid):
                yield f"{device.name}'s view", changed.devices.get(n, unchanged)


def _wrong(tag: str, changed: Changed, saying: Saying) -> Iterator[tuple[Kind, str]]:
    """What of this message's last state nobody can have meant."""
    if not saying.content:
        if not changed.recalls:
            yield Kind.CHANGE_PHANTOM, f"{tag} is recalled, and nobody asked for it."
    elif any(ask.answered for ask in changed.recalls):
        yield Kind.CHANGE_LOST, f"{tag} says {saying.content}, and its recall was answered."
    elif saying.content != tag and all(ask.value != saying.content for ask in changed.edits):
        yield Kind.CHANGE_PHANTOM, f"{tag} says {saying.content}, and nobody asked for it."
    elif (after := _overridden(tag, changed.edits).get(saying.content)) is not None:
        yield (
            Kind.CHANGE_LOST,
            f"{tag} says {saying.content}, and the later edit {after} was answered.",
        )
    standing = set(saying.reactions)
    for named in sorted(standing - changed.words.keys()):
        yield Kind.CHANGE_PHANTOM, f"{tag} has the reaction {named}, and nobody asked for it."
    for named, by_device in changed.words.items():
        wanted = "react" if named in standing else "unreact"
        possible = last_words(by_device.values())
        if possible and wanted not in possible:
            stands = "stands" if named in standing else "does not stand"
            yield Kind.CHANGE_LOST, f"the reaction {named} of {tag} {stands} against its last word."


def _overridden(tag: str, edits: list[Ask]) -> dict[str, str]:
    """Each content that an answered edit was made in the knowledge of, and by which."""
    below: dict[str, set[str]] = {}
    own: dict[int, str] = {}
    for ask in edits:
        below[ask.value] = {ask.told, own.get(ask.n, tag), tag}
        own[ask.n] = ask.value
    found: dict[str, str] = {}
    for ask in edits:
        if not ask.answered:
            continue
        todo = [ask.value]
        while todo:
            for content in below.get(todo.pop(), ()):
                if content not in found and content != ask.value:
                    found[content] = ask.value
                    todo.append(content)
    return found


def last_words(by_device: Iterable[Sequence[Word]]) -> set[str]:
    """One that was answered and all that came after it, of each device. Empty: none was answered,
    so anything may be."""
    possible: set[str] = set()
    answered = False
    for asks in by_device:
        last = max((at for at, ask in enumerate(asks) if ask.answered), default=0)
        answered = answered or asks[last].answered
        possible.update(ask.value for ask in asks[last:])
    return possible if answered else set()
