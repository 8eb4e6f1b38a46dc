"""Votes in a voter's own registry, and what a former life of it has left there."""

from __future__ import annotations

import random
from pathlib import Path

from imcore.runtime import SystemClock
from services.control.failover import Ballot
from services.control.voting import PREFIX, Votes
from services.engines.disk import RealDisk
from services.engines.registry_store import RegistryStore
from services.policy.poll import Poller


async def test_a_vote_of_a_former_life_is_gone_with_the_first_look_of_the_next(
    tmp_path: Path,
) -> None:
    """Seed 827086060028: with that of another voter it failed an IDC that nobody had seen away for
    long enough."""
    clock, rng = SystemClock(), random.Random(1)
    store = await RegistryStore.open(str(tmp_path), RealDisk(), clock, rng)
    registries = {"sin": store}
    poller = Poller(registries, clock, PREFIX)
    former = Votes("sin", registries, poller, clock)
    ballots = [Ballot(accused, clock.now() - 9, ("probes fail",)) for accused in ("iad", "fra")]
    await former.cast(ballots)
    await store.put(PREFIX + b"iad/fra", b"of another voter, if one wrote here")
    await store.close()
    store = await RegistryStore.open(str(tmp_path), RealDisk(), clock, rng)
    again = Votes("sin", {"sin": store}, poller, clock)
    assert len(await store.range(PREFIX)) == 3  # its lease has its whole time once more
    await again.cast(ballots[1:])
    assert [row.key for row in await store.range(PREFIX)] == [
        PREFIX + b"fra/sin", PREFIX + b"iad/fra",
    ]  # fmt: skip
    await store.close()
