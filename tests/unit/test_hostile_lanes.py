"""A client that never raises a lane's floor, or names cids at the end of their range, costs nobody
else anything."""

from __future__ import annotations

import random
import time

import pytest

from imcore.errors import Code
from imcore.limits import CID_MAX
from imcore.proto import client_pb2 as pb
from imcore.runtime import SystemClock
from imcore.words import Origin, Place
from services.engines.disk import RealDisk
from services.engines.lmdb_kv import LmdbKv
from services.engines.log_store import SegmentLogStore
from services.im.sequencer import LaneState, Pending
from services.im.testing import Idc

PENDING = Pending(b"", 1, Place(1, Origin("fra", 1), 1))
CIDS = 20_000


def test_a_floor_that_is_never_raised_does_not_make_each_message_dearer() -> None:
    lane = LaneState()
    begun = time.process_time()
    for cid in range(1, CIDS + 1):
        assert lane.want() == cid
        lane.known.add(cid)
    assert time.process_time() - begun < 1.0


def test_a_floor_that_lags_and_creeps_does_not_either() -> None:
    lane = LaneState(known=set(range(1, 5 * CIDS)))
    begun = time.process_time()
    for floor in range(2, CIDS):
        lane.raise_floor(floor)
    assert min(lane.known) == CIDS - 1
    assert time.process_time() - begun < 1.0


@pytest.mark.parametrize("seed", range(20))
def test_what_is_wanted_is_the_lowest_cid_that_is_not_known(seed: int) -> None:
    rng, lane = random.Random(seed), LaneState()
    for _ in range(300):
        cid, what = rng.randrange(1, 40), rng.randrange(6)
        if what < 2 and cid >= lane.floor:
            lane.known.add(cid)
        elif what == 2:
            lane.pending[lane.want()] = PENDING
        elif what == 3:
            lane.raise_floor(rng.randrange(1, 10))
        elif what == 4 and rng.random() < 0.2:
            lane.lower_floor(rng.randrange(1, 10))
        elif what == 5 and rng.random() < 0.2:
            lane.forget_known()
        held = lane.known | set(lane.pending)
        assert lane.want() == next(c for c in range(lane.floor, 10_000) if c not in held)
        assert all(known >= lane.floor for known in lane.known)


async def test_a_cid_at_the_end_of_its_range_leaves_the_next_send_an_answer(tmp_path) -> None:
    disk = RealDisk()
    logs = await SegmentLogStore.open(str(tmp_path / "log"), 1, disk, random.Random(1))
    kv = await LmdbKv.open(str(tmp_path / "kv"), disk)
    idc = Idc("fra.1", kv, logs, clock=SystemClock())
    await idc.start()
    try:
        session = idc.session("ann")
        for cid in ((1 << 64) - 1, CID_MAX + 1):
            refused = await idc.send(session, "d:ann:bob", cid, floor=cid)
            assert refused.error.code == Code.BAD_REQUEST
            refused = await idc.send(session, "d:ann:bob", 1, floor=cid)
            assert refused.error.code == Code.BAD_REQUEST
        last = await idc.send(session, "d:ann:bob", CID_MAX, floor=CID_MAX)
        assert last.send_ack.outcome == pb.SendAck.ACCEPTED
        wants = await idc.send(session, "d:ann:bob", 1, floor=CID_MAX, content=b"x")
        assert wants.send_ack.want == CID_MAX + 1
    finally:
        await idc.stop()
