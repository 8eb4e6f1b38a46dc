"""Controllers of three IDCs over real registry stores: an IDC dies, comes back and gets its traffic
again; a drain ends when its log is applied elsewhere."""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from imcore.auditfile import LOGGER
from imcore.errors import Unavailable
from imcore.proto import peer_pb2 as peer
from imcore.region.load import load_region
from imcore.region.model import Region
from imcore.runtime import SystemClock
from services.control import evaluate, follow
from services.control.caspaxos import Proposer
from services.control.controller import Controller
from services.control.evaluate import Decision
from services.control.operations import (
    Operation,
    commit,
    operation_from_json,
    operation_key,
)
from services.control.rules import Change, Kind
from services.control.voting import PREFIX as VOTES
from services.engines.disk import RealDisk
from services.engines.registry_store import RegistryStore
from services.ipconf.directory import PREFIX as GATEWAYS
from services.ipconf.directory import Directory
from services.policy.document import POLICY_KEY, IdcState, OperationState
from services.policy.holder import PolicyHolder
from services.policy.poll import Poller

IDCS = ("fra", "iad", "sin")
SOON_S = 8.0


class Link:
    """A registry as a peer sees it: away while its IDC is down."""

    def __init__(self, idc: Idc) -> None:
        self._idc = idc

    def __getattr__(self, name: str) -> Any:
        inner = getattr(self._idc.store, name)

        async def call(*args: Any, **kwargs: Any) -> Any:
            if self._idc.down:
                raise Unavailable(f"{self._idc.name} is down")
            return await inner(*args, **kwargs)

        return call


class Idc:
    """One IDC, reduced to what a controller touches."""

    def __init__(self, name: str, region: Region, folder: Path) -> None:
        self.name = name
        self.down = False
        self.sessions = 10
        self.closed = 0
        self.ends = [5, 5]
        self.applied_here = True  # whether it applies what others have
        self.clock = SystemClock()
        self.region = region
        self.folder = folder
        self.offset_ms = 0
        self.policy_disk = RealDisk()
        self.peers: dict[str, Idc] = {}
        self.store: RegistryStore

    async def open(self) -> None:
        self.store = await RegistryStore.open(
            str(self.folder / self.name), RealDisk(), self.clock, random.Random(1)
        )
        await self.store.put(
            f"gateway/{self.name}-gw-1".encode(),
            b'{"idc":"%s","gateway":"g","host":"h","port":1,"connections":1,"capacity":9}'
            % self.name.encode(),
        )

    def start(self, peers: dict[str, Idc]) -> None:
        self.peers = peers
        registries: dict[str, Any] = {
            name: self.store if idc is self else Link(idc) for name, idc in peers.items()
        }
        rng = random.Random(self.name)
        self.proposer = Proposer(registries, self.name, self.clock, rng)
        self.poller = Poller(registries, self.clock, GATEWAYS, VOTES)
        self.directory = Directory(list(registries), self.poller)
        self.holder = PolicyHolder(self.folder / f"{self.name}.json", self.policy_disk)
        self.controller = Controller(
            self.name,
            self.region,
            registries,
            self.poller,
            self.proposer,
            self.holder,
            self.directory,
            self.probe,
            self.peer_facts,
            self.clock,
            rng,
            facts=self.status,
            on_clock_offset=lambda ms: setattr(self, "offset_ms", ms),
        )

    async def run(self) -> None:
        self.poller.start()
        self.controller.start()
        await self.proposer.ensure_member()

    async def stop(self) -> None:
        await self.controller.stop()
        await self.poller.stop()
        await self.proposer.close()

    async def probe(self, name: str) -> peer.ProbeReply:
        other = self.peers[name]
        if other.down:
            raise Unavailable(f"{name} is down")
        return peer.ProbeReply(idc=name, wall_ms=other.clock.wall_ms(), serving=True)

    async def peer_facts(self, name: str) -> dict[str, Any]:
        if self.peers[name].down:
            raise Unavailable(f"{name} is down")
        return self.peers[name].status()

    def status(self) -> dict[str, Any]:
        others = {name: idc for name, idc in self.peers.items() if idc is not self}
        return {
            "origin": f"{self.name}.1",
            "serving": True,
            "sessions": self.sessions,
            "moves": {"closed": self.closed},
            "rates": {"accepted_per_s": 1.0, "pushed_per_s": 1.0},
            "log": {"durability": "fsync", "ends": self.ends},
            "held": {f"{name}.1": idc.ends for name, idc in others.items()},
            "applied": {
                f"{name}.1": idc.ends if self.applied_here else [0, 0]
                for name, idc in others.items()
            },
            "peers_held": {name: self.ends for name in others},
            "peers_applied": {
                name: self.ends if idc.applied_here else [0, 0] for name, idc in others.items()
            },
            "lag": {f"{name}.1": {"records": 0, "ms": 5} for name in others},
        }

    async def submit(self, kind: str, idc: str, request_id: str, **fields: Any) -> Decision:
        change = Change(kind, idc, request_id, "operator", **fields)
        return await commit(
            self.proposer, self.region, change, self.controller.evidence(), self.clock
        )

    def state(self, idc: str) -> IdcState | None:
        policy = self.holder.policy
        return policy.state(idc) if policy else None


@asynccontextmanager
async def running(folder: Path, **safety_of_it: Any) -> AsyncIterator[dict[str, Idc]]:
    region = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")
    safety = region.spec.safety.model_copy(update={"hold_ms": 500, **safety_of_it})
    spec = region.spec.model_copy(update={"safety": safety})
    region = region.model_copy(update={"spec": spec})
    idcs = {name: Idc(name, region, folder) for name in IDCS}
    for idc in idcs.values():
        await idc.open()
    for idc in idcs.values():
        idc.start(idcs)
    try:
        await asyncio.gather(*(idc.run() for idc in idcs.values()))
        await until(lambda: all(idc.holder.policy for idc in idcs.values()))
        yield idcs
    finally:
        for idc in idcs.values():
            await idc.stop()
            await idc.store.close()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110 - what is waited for spans several processes' loops
            await asyncio.sleep(0.02)


async def test_an_idc_dies_and_comes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follow, "STEP_S", 0.1)
    async with running(tmp_path) as idcs:
        fra, iad, sin = (idcs[name] for name in IDCS)
        await until(lambda: iad.directory.live_in("fra") and sin.directory.live_in("fra"))
        assert all(idc.state("fra") is IdcState.ACTIVE for idc in idcs.values())

        fra.down = True
        await fra.stop()
        await until(lambda: iad.state("fra") is sin.state("fra") is IdcState.FAILED)
        policy = iad.holder.policy
        assert policy is not None
        assert policy.epoch == 2  # one commit, though two controllers wanted it
        record, _ = await iad.proposer.read(operation_key("failover-fra-2"))
        operation = operation_from_json(record or b"")
        assert operation.state is OperationState.DONE
        assert {vote["voter"] for vote in operation.steps[0].evidence["votes"]} == {"iad", "sin"}

        heard_ms = iad.controller.evidence().idcs["fra"].at_ms
        fra.down = False
        fra.start(idcs)
        await fra.run()
        await until(lambda: iad.state("fra") is IdcState.RECOVERING)
        await until(lambda: iad.controller.evidence().idcs["fra"].at_ms > heard_ms)
        await until(lambda: not iad.controller.evidence().votes)
        decision = await iad.submit(Kind.FAILBACK, "fra", "back")
        assert decision.policy is not None, decision.sentence
        await until(
            lambda: (
                iad.holder.policy
                and iad.holder.policy.idcs["fra"].ramp == 100
                and iad.state("fra") is IdcState.ACTIVE
                and iad.holder.policy.operation is None
            )
        )
        record, _ = await iad.proposer.read(operation_key(decision.operation))
        operation = operation_from_json(record or b"")
        assert operation.state is OperationState.DONE
        assert [step.sentence.split(" by ")[0].split(": ")[1] for step in operation.steps] == [
            "failback of fra",
            "ramp of fra to 10 %",
            "ramp of fra to 50 %",
            "ramp of fra to 100 %",
        ]


async def test_an_idc_that_nobody_reaches_is_failed_over_once_though_it_reaches_everybody(
    tmp_path: Path,
) -> None:
    """As behind a firewall that lets nothing in. It must not say that it is back, or each second it
    would be failed over again, and whatever move is under way elsewhere would end."""
    async with running(tmp_path) as idcs:
        fra, iad, sin = (idcs[name] for name in IDCS)
        await until(lambda: iad.directory.live_in("fra") and sin.directory.live_in("fra"))
        fra.down = True
        await until(lambda: iad.state("fra") is sin.state("fra") is IdcState.FAILED)
        await asyncio.sleep(3.0)
        assert iad.holder.policy is not None and iad.holder.policy.epoch == 2
        fra.down = False
        await until(lambda: iad.state("fra") is IdcState.RECOVERING)
        await asyncio.sleep(1.0)
        assert iad.state("fra") is IdcState.RECOVERING


async def test_a_failover_that_is_not_allowed_is_audited_once_and_not_each_second(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger=LOGGER)
    async with running(tmp_path, automatic_failover=False) as idcs:
        idcs["sin"].down = True
        await until(lambda: refusals(caplog))
        await asyncio.sleep(4.0)
        assert len(refusals(caplog)) <= 2  # of each accuser


def refusals(caplog: pytest.LogCaptureFixture) -> list[str]:
    found = [record.getMessage() for record in caplog.records if record.name == LOGGER]
    return [each for each in found if "automatic-failover" in each]


async def test_a_drain_ends_when_its_log_is_applied_elsewhere(tmp_path: Path) -> None:
    async with running(tmp_path) as idcs:
        fra, iad, sin = (idcs[name] for name in IDCS)
        await until(lambda: len(iad.controller.evidence().idcs) == 3)
        sin.applied_here = False
        decision = await iad.submit(Kind.DRAIN, "fra", "go")
        assert decision.policy is not None, decision.sentence
        again = await sin.submit(Kind.DRAIN, "fra", "go")
        assert again.repeated
        assert again.operation == decision.operation
        await until(lambda: "10 sessions" in fra.controller.waiting_for)
        fra.sessions = 0
        await until(lambda: "not applied in sin" in fra.controller.waiting_for)
        assert iad.state("fra") is IdcState.DRAINING
        sin.applied_here = True
        fra.ends = [9, 9]  # the log goes on (ticks); what counts is the end when it was empty
        await until(lambda: iad.state("fra") is IdcState.DRAINED)


async def record_of(idc: Idc, name: str) -> Operation:
    record, _ = await idc.proposer.read(operation_key(name))
    return operation_from_json(record or b"")


async def test_a_drain_is_paused_resumed_and_taken_back_by_others_than_who_began_it(
    tmp_path: Path,
) -> None:
    async with running(tmp_path) as idcs:
        fra, iad, sin = (idcs[name] for name in IDCS)
        await until(lambda: all(len(x.controller.evidence().idcs) == 3 for x in idcs.values()))
        name = (await iad.submit(Kind.DRAIN, "fra", "go")).operation
        paused = await sin.submit(Kind.PAUSE, "", "wait", operation=name)
        assert paused.policy is not None, paused.sentence
        assert (await fra.submit(Kind.PAUSE, "", "wait", operation=name)).repeated
        fra.sessions = 0
        await until(lambda: fra.holder.policy and fra.holder.policy.epoch == 3)
        await asyncio.sleep(1.0)  # three looks of each controller: none takes the step
        assert iad.state("fra") is IdcState.DRAINING
        assert (await record_of(iad, name)).state is OperationState.PAUSED
        assert (await fra.submit(Kind.RESUME, "", "on", operation=name)).policy is not None
        await until(lambda: iad.state("fra") is IdcState.DRAINED)
        await settled(iad, name, OperationState.DONE)
        steps = (await record_of(iad, name)).steps
        assert [step.epoch for step in steps] == [2, 3, 4, 5]

        iad.sessions, name = 7, (await fra.submit(Kind.DRAIN, "iad", "go2")).operation
        assert (await sin.submit(Kind.ABORT, "", "no", operation=name)).policy is not None
        await until(lambda: fra.state("iad") is IdcState.ACTIVE)
        assert (await record_of(fra, name)).state is OperationState.ABORTED


async def settled(idc: Idc, name: str, state: OperationState) -> None:
    """A record is written right behind its commit."""
    async with asyncio.timeout(SOON_S):
        while (await record_of(idc, name)).state is not state:  # noqa: ASYNC110 - a registry's
            await asyncio.sleep(0.05)


async def test_a_drain_that_comes_no_nearer_is_paused_and_says_why(tmp_path: Path) -> None:
    async with running(tmp_path, stall_ms=700) as idcs:
        fra, iad, _ = (idcs[name] for name in IDCS)
        await until(lambda: len(iad.controller.evidence().idcs) == 3)
        name = (await iad.submit(Kind.DRAIN, "fra", "go")).operation
        await settled(iad, name, OperationState.STALLED)
        stalled = await record_of(iad, name)
        assert "10 sessions" in stalled.steps[-1].sentence
        assert len(stalled.steps) == 2  # three controllers saw it, one pause is committed
        fra.sessions = 0
        assert (await iad.submit(Kind.RESUME, "", "on", operation=name)).policy is not None
        await until(lambda: iad.state("fra") is IdcState.DRAINED)
        await settled(iad, name, OperationState.DONE)


async def test_a_move_overtaken_or_forced_is_not_called_done(tmp_path: Path) -> None:
    async with running(tmp_path) as idcs:
        fra, iad, sin = (idcs[name] for name in IDCS)
        await until(lambda: len(iad.controller.evidence().idcs) == 3)
        fra.closed, fra.sessions = 2, 0
        name = (await iad.submit(Kind.DRAIN, "fra", "go")).operation
        await settled(iad, name, OperationState.EXCEPTIONS)
        fra.applied_here = False  # it does not catch up
        name = (await iad.submit(Kind.FAILBACK, "fra", "back")).operation
        sin.down = True
        await sin.stop()
        await until(lambda: iad.state("sin") is IdcState.FAILED)
        await settled(iad, name, OperationState.FAILED)


async def test_a_minority_knows_itself_and_keeps_its_policy(tmp_path: Path) -> None:
    async with running(tmp_path) as idcs:
        fra, iad, sin = (idcs[name] for name in IDCS)
        iad.down = sin.down = True
        await until(lambda: fra.controller.in_minority() and fra.holder.stale)
        assert fra.state("iad") is IdcState.ACTIVE
        assert fra.controller.alarms()
        iad.down = sin.down = False
        await until(lambda: not fra.controller.in_minority() and not fra.holder.stale)


async def test_a_full_disk_makes_a_policy_stale_and_never_silently_old(tmp_path: Path) -> None:
    async with running(tmp_path) as idcs:
        fra, iad, _ = (idcs[name] for name in IDCS)
        await until(lambda: len(iad.controller.evidence().idcs) == 3 and not fra.holder.stale)
        fra.policy_disk.faults.full = True
        decision = await iad.submit(Kind.CORDON, "sin", "1")
        assert decision.policy is not None, decision.sentence
        await until(lambda: fra.holder.stale)
        assert fra.state("sin") is IdcState.ACTIVE
        (alarm,) = fra.controller.alarms()
        assert "epoch 2 cannot be kept" in alarm and "disk is full" in alarm
        fra.policy_disk.faults.full = False
        await until(lambda: fra.state("sin") is IdcState.CORDONED)
        assert not fra.holder.stale
        assert fra.controller.alarms() == []


async def test_a_policy_that_cannot_be_read_makes_no_minority(tmp_path: Path) -> None:
    """As a newer program may write one. All IDCs would hand their clients over to each other."""
    async with running(tmp_path) as idcs:
        fra, iad, _ = (idcs[name] for name in IDCS)
        await until(lambda: not fra.holder.stale)
        policy = fra.holder.policy
        assert policy is not None
        strange = replace(policy, epoch=2).to_json().replace(b'"active"', b'"asleep"')
        await iad.proposer.change(POLICY_KEY, lambda current: strange)
        await until(lambda: fra.holder.stale)
        await asyncio.sleep(1.5)  # three times the hold time
        assert not fra.controller.in_minority()
        (alarm,) = fra.controller.alarms()
        assert "cannot be read" in alarm and "epoch 1 is served" in alarm
        await iad.proposer.change(POLICY_KEY, lambda current: replace(policy, epoch=3).to_json())
        await until(lambda: fra.holder.policy and fra.holder.policy.epoch == 3)
        assert fra.controller.alarms() == []


async def test_clocks_are_compared(tmp_path: Path) -> None:
    async with running(tmp_path) as idcs:
        idcs["fra"].clock.offset_ms = 600_000
        await until(lambda: idcs["fra"].offset_ms < -599_000)
        assert abs(idcs["iad"].offset_ms) < 1_000


async def test_a_registry_speaks_for_its_own_voter_only(tmp_path: Path) -> None:
    async with running(tmp_path) as idcs:
        fra = idcs["fra"]
        for voter in ("iad", "fra"):
            row = f'{{"accused":"sin","voter":"{voter}","held_ms":9000,"sentence":""}}'
            await fra.store.put(f"vote/sin/{voter}".encode(), row.encode())
        await until(lambda: fra.controller.evidence().votes)
        assert [vote.voter for vote in fra.controller.evidence().votes] == ["fra"]


async def test_records_of_operations_long_past_are_emptied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(evaluate, "HISTORY_MAX", 1)
    async with running(tmp_path, anti_flap_ms=0) as idcs:
        iad = idcs["iad"]
        await until(lambda: len(iad.controller.evidence().idcs) == 3)
        first = await iad.submit(Kind.DRAIN, "fra", "1")
        await iad.submit(Kind.UNDRAIN, "fra", "2")
        second = await iad.submit(Kind.DRAIN, "fra", "3")
        assert (await iad.proposer.read(operation_key(first.operation)))[0] == b""
        record, _ = await iad.proposer.read(operation_key(second.operation))
        assert operation_from_json(record or b"").state is OperationState.RUNNING
