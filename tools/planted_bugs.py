"""Eleven bugs of systems like this, each as the change that plants it, for the simulation to find.

``tools/planted.py`` plants each one in a copy of the sources and runs seeds until a promise breaks;
tests/unit/test_planted.py checks in every run that ``old`` stands in its file exactly once, and
that the changed file compiles. How many seeds a bug may take is stated with some room over what it
took when it was last measured (docs/testing.md).
"""

from __future__ import annotations

from typing import NamedTuple


class Planted(NamedTuple):
    """``seeds``: within how many it must be found. ``how``: what the change does, in words."""

    name: str
    seeds: int
    how: str
    file: str
    old: str
    new: str


# fmt: off
PLANTED = (
    Planted(
        "fencing left out", 12, "the lock that is held for life keeps nobody out",
        "services/engines/disk.py",
        "fcntl.flock(file._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)", "os.fstat(file._fd)",
    ),
    Planted(
        "ack before fsync", 20, "a record is acked when it is written, and the sync left to later",
        "services/engines/segments.py",
        "        active.sync()\n        self._synced_bytes = self.segments[-1].size",
        "        self._synced_bytes = self.segments[-1].size",
    ),
    Planted(
        "cursor that goes back", 4, "of two read cursors the one that came last counts",
        "services/im/fold.py",
        "if stored is None or place_of(pb.Place.FromString(stored)) < place:", "if True:",
    ),
    Planted(
        "mirrored op mirrored on", 3, "what a mirror brought is put into the own log too (once)",
        "services/node/node.py",
        "        self.im.told(number, origin, effects)\n",
        "        self.im.told(number, origin, effects)\n"
        "        ops = [entry.op for found in effects.entries.values() for entry in found]\n"
        "        ops = [op for op in ops if op.HasField('message')]\n"
        "        ops = [op for op in ops if not op.message.HasField('place')]\n"
        "        if origin.idc != self.idc and ops:\n"
        "            asyncio.ensure_future(self.partitions[number].republish(origin, ops))\n",
    ),
    Planted(
        "alias rule by wall clock", 4, "a copy stands where the clock of its IDC put it",
        "services/im/fold.py",
        "own_place = place_kept(op, origin)",
        "own_place = Place(op.wall_ms << 16, origin, op.seq)",
    ),
    Planted(
        "outbox dropped at `stored`", 40, "a sender forgets its message at the first ack",
        "services/sdk/core/outbox.py",
        "if ack.replicated or mirrored:", "if True:",
    ),
    Planted(
        "epoch compared the wrong way round", 4, "an older policy takes the place of a newer one",
        "services/policy/holder.py",
        "policy.epoch <= self.policy.epoch:", "policy.epoch >= self.policy.epoch:",
    ),
    Planted(
        "route of a dead gateway used", 4, "nobody asks whether its lease lives",
        "services/node/traffic.py",
        "return gateway in self._live_in(idc)", "return True",
    ),
    Planted(
        "gap ignored", 4, "a device counts from the newest position, whatever lies below",
        "services/sdk/core/vector.py",
        "if seq == prefix + 1:", "if seq > prefix:",
    ),
    Planted(
        "two moves at once", 8, "a move under way is in nobody's way",
        "services/control/rules.py",
        "    running = case.policy.operation\n    if running is None:\n        return None\n"
        "    return Blocker(\n        \"one-move-at-a-time\",",
        "    running = None\n    if running is None:\n        return None\n"
        "    return Blocker(\n        \"one-move-at-a-time\",",
    ),
    Planted(
        "policy commit without a majority", 10, "one registry's acceptance is enough",
        "services/control/round.py",
        "self._majority = majority(total)", "self._majority = 1",
    ),
)
# fmt: on
