"""Votes as leased keys in the voter's own registry, and everybody's votes read from all of them."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence

from imcore.errors import ImError
from imcore.runtime import Clock
from services.control.evidence import Vote
from services.control.failover import Ballot
from services.policy.poll import Poller
from services.ports import Registry

log = logging.getLogger("im.control")

PREFIX = b"vote/"
LEASE_MS = 2_000


class Votes:
    """``cast`` is to be called a few times a second: it renews the lease and the time held."""

    def __init__(
        self, own: str, registries: Mapping[str, Registry], poller: Poller, clock: Clock
    ) -> None:
        self._own = own
        self._registries = registries
        self._poller = poller
        self._clock = clock
        self._lease = 0
        self._cast: dict[str, Ballot] = {}
        self._anew = True  # votes of a former life may stand in the own registry

    async def cast(self, ballots: Sequence[Ballot]) -> None:
        """Make the own registry hold exactly these votes. What cannot be written now is written
        next time; what cannot be removed ends with its lease."""
        now = self._clock.now()
        wanted = {ballot.accused: ballot for ballot in ballots}
        gone = [accused for accused in self._cast if accused not in wanted]
        for accused, ballot in wanted.items():
            if accused not in self._cast:
                log.warning("%s votes against %s", self._own, ballot.sentence(now))
        for accused in gone:
            log.warning("%s takes its vote against %s back", self._own, accused)
        self._cast = wanted
        registry = self._registries[self._own]
        try:
            if self._anew:
                await self._forget(registry, wanted)
            for accused in gone:
                await registry.put(self._key(accused), None)
            if not wanted:
                return
            if not self._lease or not await registry.keep_alive(self._lease):
                self._lease = await registry.grant_lease(LEASE_MS)
            for ballot in wanted.values():
                await registry.put(
                    self._key(ballot.accused), self._value(ballot, now), lease=self._lease
                )
        except ImError as error:
            self._lease = 0
            log.warning("%s could not write its votes: %s", self._own, error)

    async def _forget(self, registry: Registry, wanted: Mapping[str, Ballot]) -> None:
        """A registry that starts again gives its leases their whole time once more: what a former
        life saw, long ago perhaps, would count as seen now."""
        keep = {self._key(accused) for accused in wanted}
        for row in await registry.range(PREFIX):
            if row.key.endswith(f"/{self._own}".encode()) and row.key not in keep:
                await registry.put(row.key, None)
        self._anew = False

    def seen(self, now_wall_ms: int) -> list[Vote]:
        """All live votes, with the time of each observation on the own wall clock."""
        found = []
        now = self._clock.now()
        for name in self._registries:
            answered = self._poller.answered_at(name)
            if answered is None:
                continue
            at_ms = now_wall_ms - int((now - answered) * 1000)
            for row in self._poller.entries(name, PREFIX):
                vote = _vote(name, row.value, at_ms)
                if vote is not None:
                    found.append(vote)
        return found

    def _key(self, accused: str) -> bytes:
        return PREFIX + f"{accused}/{self._own}".encode()

    def _value(self, ballot: Ballot, now: float) -> bytes:
        return json.dumps(
            {
                "accused": ballot.accused,
                "voter": self._own,
                "held_ms": int((now - ballot.since) * 1000),
                "signs": ballot.signs,
                "sentence": ballot.sentence(now),
            }
        ).encode()


def _vote(registry: str, value: bytes, at_ms: int) -> Vote | None:
    """A registry holds the votes of its own voter only."""
    try:
        row = json.loads(value)
        vote = Vote(
            str(row["voter"]),
            str(row["accused"]),
            int(row["held_ms"]),
            at_ms,
            str(row["sentence"]),
        )
    except (ValueError, KeyError, TypeError):
        return None
    return vote if vote.voter == registry else None


async def votes_now(own: str, registries: Mapping[str, Registry], clock: Clock) -> list[Vote]:
    """All that stand, for who does not poll. One whose registry does not answer is not among
    them."""
    poller = Poller(registries, clock, PREFIX)
    await poller.poll_all()
    return Votes(own, registries, poller, clock).seen(clock.wall_ms())
