"""What a judged history amounts to: counts, and a few concrete examples of each violation."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from enum import StrEnum

EXAMPLES_MAX = 5


class Kind(StrEnum):
    """What can be wrong. ``GROUPS`` says which figure of a report each one counts in."""

    MISSING = "missing"  # acked, and absent from a view that must have it
    UNEVEN = "uneven"  # never acked, and present in some final views only
    SHOWN_TWICE = "shown_twice"
    STANDS_TWICE = "stands_twice"  # in a fresh login's view
    VIEWS_DIFFER = "views_differ"
    OWN_ORDER = "own_order"  # a sender's own order, at any time or in the end
    ANSWER_FIRST = "answer_first"  # an answer before a question its sender had been shown
    MISPLACED = "misplaced"  # an index or a move that contradicts the view as shown so far
    PHANTOM = "phantom"  # shown, never composed
    ALTERED = "altered"  # composed with other content
    STRAY = "stray"  # shown in another conversation than it was composed in
    EPOCH_BACK = "epoch_back"  # a policy's epoch went back where it is served
    EPOCH_DISPUTED = "epoch_disputed"  # one epoch, two contents
    PLACE_TWICE = "place_twice"  # two acked messages have one place of one origin
    CLOCK_BACK = "clock_back"  # acked places of one origin whose seq and clock disagree
    CURSOR_BACK = "cursor_back"  # a read cursor went back on a device
    UNREAD_WRONG = "unread_wrong"  # in the end, against what was read and what stands above it
    OWN_UNSEEN = "own_unseen"  # a device's own acked message, where it had been acked
    REPLICAS_DIFFER = "replicas_differ"  # in the end, by the hashes of their states
    CHANGES_DIFFER = "changes_differ"  # in the end, what edits, a recall, reactions made of one
    CHANGE_LOST = "change_lost"  # answered, and undone in the end by nothing that came after it
    CHANGE_PHANTOM = "change_phantom"  # nobody asked for it
    WORDS_DIFFER = "words_differ"  # in the end, what stands of friends, settings, groups
    WORD_LOST = "word_lost"  # answered, and what stands is neither it nor what may come after it
    WORD_PHANTOM = "word_phantom"  # it stands, and nobody said it
    UNPROVEN = "unproven"  # no fresh login looked at this conversation in this IDC


GROUPS: dict[str, tuple[Kind, ...]] = {
    "missing": (Kind.MISSING,),
    "duplicate": (Kind.SHOWN_TWICE, Kind.STANDS_TWICE),
    "out_of_order": (
        Kind.VIEWS_DIFFER,
        Kind.UNEVEN,
        Kind.OWN_ORDER,
        Kind.ANSWER_FIRST,
        Kind.MISPLACED,
    ),
    "phantom": (Kind.PHANTOM, Kind.ALTERED, Kind.STRAY),
    "policy_wrong": (Kind.EPOCH_BACK, Kind.EPOCH_DISPUTED),
    "two_writers": (Kind.PLACE_TWICE, Kind.CLOCK_BACK),
    "session_broken": (Kind.CURSOR_BACK, Kind.UNREAD_WRONG, Kind.OWN_UNSEEN),
    "replicas_differ": (Kind.REPLICAS_DIFFER,),
    "changes_wrong": (Kind.CHANGES_DIFFER, Kind.CHANGE_LOST, Kind.CHANGE_PHANTOM),
    "words_wrong": (Kind.WORDS_DIFFER, Kind.WORD_LOST, Kind.WORD_PHANTOM),
    "unproven": (Kind.UNPROVEN,),
}


@dataclass(slots=True)
class Counts:
    """What the history holds; all legal."""

    composed: int = 0
    acked: int = 0
    degraded: int = 0
    failed: int = 0  # sends that the application was told had failed
    shown: int = 0
    late: int = 0  # inserted before the end of a view
    moved: int = 0
    devices: int = 0
    conversations: int = 0
    logins: int = 0
    views: int = 0  # final views judged, of devices and of fresh logins
    unacked_present: int = 0  # never acked, yet in every final view
    policies: int = 0  # what was said of policies
    placed: int = 0  # acks that told where the message stands
    cursors: int = 0  # read cursors that devices were told
    unread: int = 0  # unread counts that fresh logins were told, judged
    own_looked_for: int = 0  # own messages that had to be in a view or a look before the end
    changes: int = 0  # edits, recalls and reactions that were asked for
    words: int = 0  # words that were said
    stands: int = 0  # of what fresh logins found of them, judged
    replicas: int = 0  # whose states were hashed in the end


@dataclass(slots=True)
class Report:
    """``finished``: the history has its quiet mark, so that what is missing could be judged."""

    counts: Counts = field(default_factory=Counts)
    violations: Counter[Kind] = field(default_factory=Counter)
    examples: dict[Kind, list[str]] = field(default_factory=dict)
    finished: bool = False
    torn: bool = False

    def found(self, kind: Kind, sentence: str, times: int = 1) -> None:
        self.violations[kind] += times
        examples = self.examples.setdefault(kind, [])
        if len(examples) < EXAMPLES_MAX:
            examples.append(sentence)

    def total(self, group: str) -> int:
        return sum(self.violations[kind] for kind in GROUPS[group])

    @property
    def clean(self) -> bool:
        return self.finished and not self.violations.total()

    @property
    def exit_code(self) -> int:
        """0 clean, 1 violations, 2 the history ends too early to be judged whole."""
        if self.violations.total():
            return 1
        return 0 if self.finished else 2

    def sentence(self) -> str:
        """The verdict in one line."""
        counts = self.counts
        judged = (
            f"{counts.composed} messages, {counts.acked} acked, {counts.shown} shown, "
            f"{counts.views} final views"
        )
        if self.violations.total():
            wrong = ", ".join(
                f"{self.total(group)} {group.replace('_', ' ')}"
                for group in GROUPS
                if self.total(group)
            )
            return f"{judged}: {wrong}"
        if not self.finished:
            return f"{judged}: the history has no quiet mark, so what is missing cannot be judged"
        return f"{judged}: nothing missing, nothing twice, one order"

    def as_json(self) -> dict[str, object]:
        return {
            "finished": self.finished,
            "torn": self.torn,
            "counts": {name: getattr(self.counts, name) for name in Counts.__slots__},
            "totals": {group: self.total(group) for group in GROUPS},
            "violations": {str(kind): number for kind, number in sorted(self.violations.items())},
            "examples": {str(kind): lines for kind, lines in sorted(self.examples.items())},
        }
