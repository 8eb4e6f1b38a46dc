"""What the clients feel right now, and whether their world agrees: figures of a run under way.

Pure: fed with events of the history and with what was seen of the deployment.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from imcore import history as h
from imcore.checker.ledger import Pair

MARKS_MAX = 600  # some minutes of looks


class CanaryWatch:
    """Canary messages that are acked and not shown to their receiver yet. ``pairs``: of each
    canary's uid. All times µs."""

    def __init__(self, pairs: Mapping[str, Pair]) -> None:
        self._pairs = pairs
        self._uids: dict[int, str] = {}  # devices of canaries
        self._sent: dict[str, int] = {}  # tag: device, until it is shown elsewhere
        self._waiting: dict[str, tuple[int, Pair]] = {}  # acked when, oldest first
        self.acked: dict[Pair, int] = {}

    def feed(self, event: h.Event) -> None:
        match event:
            case h.Shown() if event.n in self._uids and event.tag in self._sent:
                if self._sent[event.tag] != event.n:
                    del self._sent[event.tag]
                    self._waiting.pop(event.tag, None)
            case h.Compose() if event.n in self._uids:
                self._sent[event.tag] = event.n
            case h.Ack() if event.n in self._uids:
                pair = self._pairs[self._uids[event.n]]
                self.acked[pair] = self.acked.get(pair, 0) + 1
                if event.tag in self._sent:  # else it was shown before its ack arrived
                    self._waiting[event.tag] = (event.t, pair)
            case h.Device() if event.uid in self._pairs:
                self._uids[event.n] = event.uid

    def delay(self, now_us: int) -> tuple[float, Pair | None]:
        """How long the oldest has waited, in seconds, and between which IDCs."""
        for acked, pair in self._waiting.values():
            return (now_us - acked) / 1e6, pair
        return 0.0, None


class Epochs:
    """Split brain: did two IDCs ever show one epoch of the policy with different contents."""

    def __init__(self) -> None:
        self._content: dict[int, tuple[str, str]] = {}  # epoch: who showed it first, what
        self.disputes: list[str] = []
        self.seen: set[int] = set()

    def feed(self, idc: str, epoch: int, content: str) -> None:
        self.seen.add(epoch)
        first, known = self._content.setdefault(epoch, (idc, content))
        if known != content:
            said = f"epoch {epoch} is one thing at {first} and another at {idc}"
            if said not in self.disputes:
                self.disputes.append(said)


class Stale:
    """For how long each IDC's ipconf has answered with an older epoch than one committed."""

    def __init__(self) -> None:
        self._committed: dict[int, float] = {}  # epoch: when it was first seen anywhere
        self._newest = 0
        self.behind_s: dict[str, float] = {}

    def committed(self, epoch: int, now: float) -> None:
        if epoch > self._newest:
            self._newest = epoch
            self._committed[epoch] = now

    def answered(self, idc: str, epoch: int, now: float) -> None:
        """The age of the oldest epoch that it should have known and did not."""
        missed = [at for known, at in self._committed.items() if known > epoch]
        self.behind_s[idc] = now - min(missed) if missed else 0.0

    def silent(self, idc: str) -> None:
        """It serves nobody an old epoch."""
        self.behind_s.pop(idc, None)

    def worst(self) -> tuple[float, str]:
        return max(((s, idc) for idc, s in self.behind_s.items()), default=(0.0, ""))


class Mirrors:
    """For how long what an IDC had in its log has been missing in another's copy of it: by marks of
    the log's ends, whatever the mirror says of itself. Nothing is copied of or to an IDC that does
    not answer: the time counts from when both did."""

    def __init__(self) -> None:
        self._silent_at: dict[str, float] = {}  # when an IDC last did not answer
        self._marks: dict[str, deque[tuple[float, tuple[int, ...]]]] = {}  # by origin
        self.behind_s: dict[tuple[str, str], float] = {}  # (origin, at)

    def ends(self, origin: str, ends: Sequence[int], now: float) -> None:
        """Of its own log, by partition."""
        marks = self._marks.setdefault(origin, deque(maxlen=MARKS_MAX))
        if not marks or marks[-1][1] != tuple(ends):
            marks.append((now, tuple(ends)))

    def holds(self, at: str, origin: str, held: Sequence[int], now: float) -> None:
        missing = [
            seen
            for seen, ends in self._marks.get(origin, ())
            if any(have < want for have, want in zip(held, ends, strict=False))
        ]
        both = max(self._silent_at.get(idc, 0.0) for idc in (at, origin.rpartition(".")[0]))
        self.behind_s[origin, at] = now - max(missing[0], both) if missing else 0.0

    def forget(self, idc: str, now: float) -> None:
        """One that does not answer: nobody knows what it holds, or has."""
        self._silent_at[idc] = now
        for origin, at in [*self.behind_s]:
            if idc in (at, origin.rpartition(".")[0]):
                del self.behind_s[origin, at]

    def worst(self) -> tuple[float, str]:
        found = max(self.behind_s.items(), key=lambda one: one[1], default=None)
        if found is None:
            return 0.0, ""
        (origin, at), behind_s = found
        return behind_s, f"{at} lacks what {origin} has in its log"


@dataclass(slots=True)
class Stuck:
    """Sessions that were told to go and took much longer than others: the most at once that each
    gateway was seen to have."""

    most: dict[str, int] = field(default_factory=dict)

    def feed(self, by_gateway: Mapping[str, int]) -> None:
        for gateway, count in by_gateway.items():
            self.most[gateway] = max(count, self.most.get(gateway, 0))

    def notes(self) -> list[str]:
        return [
            f"{gateway}: up to {count} of its sessions took much longer to go than others."
            for gateway, count in sorted(self.most.items())
        ]


class Carried(NamedTuple):
    """What an IDC carries, and what the region file says that it can."""

    sessions: int
    messages_per_s: float
    sessions_max: int
    messages_per_s_max: int

    @property
    def percent(self) -> float:
        shares = (
            self.sessions / self.sessions_max,
            self.messages_per_s / self.messages_per_s_max,
        )
        return 100 * max(shares)


class Standing(NamedTuple):
    """A vote: when its evidence began to hold (wall clock)."""

    voter: str
    accused: str
    since_ms: int


@dataclass(slots=True)
class Accusation:
    """When an IDC's loss was noticed, and when it was decided; wall clock, None: not yet."""

    detected_ms: int | None = None
    decided_ms: int | None = None
    voters: set[str] = field(default_factory=set)


def accused(votes: Iterable[Standing], idc: str, voters: int, hold_ms: int) -> Accusation:
    """``voters``: how many there are. Decided: a strict majority of all has held its evidence for
    the hold time (the policy's change is committed after that)."""
    since = sorted((v.since_ms, v.voter) for v in votes if v.accused == idc and v.voter != idc)
    if not since:
        return Accusation()
    found = Accusation(since[0][0], voters={voter for _, voter in since})
    majority = voters // 2 + 1
    if len(since) >= majority:
        found.decided_ms = since[majority - 1][0] + hold_ms
    return found
