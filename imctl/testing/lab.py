"""A deployment of its own on this machine: free ports, its own folder, faults on.

async with Lab.up(tmp_path) as lab:
    await lab.cut("fra", "iad")
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, TypeVar

import grpc
import yaml

from imcore.errors import Unavailable
from imcore.proto import peer_pb2 as pb
from imcore.proto import peer_pb2_grpc as rpc
from imcore.roles import Role
from imcore.runtime import SystemClock
from imcore.tls import grpc_channel
from imctl import admin, startup
from imctl.errors import Failed
from imctl.moves import LocalDeployment
from imctl.target.local import LINKPROXY, Local
from imctl.target.places import free_ports, free_row
from imctl.traffic import Control
from services.control.rules import Change
from services.policy.document import IdcState, Policy

REGION = Path(__file__).parents[2] / "regions" / "three-idc.yaml"
ENDS = ("gateway", "ipconf", "peer", "metrics", "media")
POLL_S = 0.1
HASH_TIMEOUT_S = 60.0
# Guards against hanging, and no promise of ours: on a busy machine everything takes longer.
ANSWER_S = 20.0  # what one call may take to a process that runs
WAIT_S = 60.0  # for what comes by itself
MOVE_S = 120.0  # for a move of traffic, or several

T = TypeVar("T")
Edit = Callable[[dict[str, Any]], None]
Hashes = dict[str, tuple[tuple[int, bytes, int], ...]]


def lab_region(folder: Path, edit: Edit | None = None, source: Path = REGION) -> Path:
    """A copy of a region file with ports of its own; ``edit`` changes its ``spec``."""
    document = yaml.safe_load(source.read_text())
    spec = document["spec"]
    ends = _ends(spec)
    for (holder, key), port in zip(ends, free_ports(len(ends)), strict=True):
        holder[key] = f"127.0.0.1:{port}"
    if edit is not None:
        edit(spec)
    path = folder / "region.yaml"
    path.write_text(yaml.safe_dump(document, sort_keys=False))
    return path


def row_of_ports(spec: dict[str, Any], count: int) -> int:
    """The first of so many free ports next to each other, as an IDC with several gateways wants
    them; none of them is another end's of this region."""
    taken = {int(holder[key].rpartition(":")[2]) for holder, key in _ends(spec)}
    return free_row(count, taken)


def _ends(spec: dict[str, Any]) -> list[tuple[dict[str, Any], str]]:
    holders = [idc["endpoints"] for idc in spec["idcs"]]
    holders += [spec["witness"]] if spec.get("witness") else []
    return [(holder, key) for holder in holders for key in ENDS if key in holder]


async def until(
    holds: Callable[[], Awaitable[T]], seconds: float, otherwise: str, poll_s: float = POLL_S
) -> T:
    """The first true answer. Raises Unavailable with ``otherwise`` and the last answer."""
    deadline = asyncio.get_running_loop().time() + seconds
    while True:
        answer = await holds()
        if answer:
            return answer
        if asyncio.get_running_loop().time() >= deadline:
            raise Unavailable(f"{otherwise} within {seconds:g} s (last seen: {answer!r})")
        await asyncio.sleep(poll_s)


class Lab:
    def __init__(self, target: Local) -> None:
        self.target = target
        self.clock = SystemClock()
        self.hash_timeout_s = HASH_TIMEOUT_S  # it scans everything: longer where that is much
        self.idcs = [idc.name for idc in target.region.spec.idcs]
        self._control = Control(target, self.clock, random.Random())
        self._moves = LocalDeployment(target, self._control)

    @staticmethod
    @contextlib.asynccontextmanager
    async def up(
        folder: Path,
        edit: Edit | None = None,
        before_start: Callable[[Local], None] = lambda target: None,
        engines: Sequence[str] = (),
        split: bool = False,
        standby: bool = False,
        routes: int = 0,
    ) -> AsyncIterator[Lab]:
        """Until all serve; nothing of it runs on afterwards."""
        region = lab_region(folder, edit)
        target = Local.prepare(
            region, folder / "deployment", True, SystemClock(), engines, split, standby, routes
        )
        before_start(target)
        try:
            await startup.start_all(target, lambda name, serving: None)
            lab = Lab(target)
            try:
                yield lab
            finally:
                await lab.close()
        finally:
            await asyncio.to_thread(target.stop)

    async def close(self) -> None:
        await self._control.__aexit__(None, None, None)

    # ------------------------------------------------------------------------------ processes

    async def kill(self, idc: str) -> None:
        await asyncio.to_thread(self.target.kill, idc)

    async def stop(self, idc: str) -> None:
        """As an operator would: with a farewell."""
        await asyncio.to_thread(self.target.terminate, idc)

    async def start(self, idc: str, serving: bool = True) -> None:
        await asyncio.to_thread(self.target.start, [idc])
        if serving:
            await startup.wait_serving(self.target, [idc], lambda name, served: None)

    def wipe(self, idc: str) -> None:
        self.target.wipe(idc)

    def data(self, idc: str) -> Path:
        return self.target.data / idc / "data"

    def log(self, idc: str) -> str:
        return self.target.log_file(idc).read_text(errors="replace")

    # --------------------------------------------------------------------------------- faults

    async def cut(self, a: str, b: str) -> None:
        await self._link(a, b, "drop")

    async def isolate(self, idc: str) -> None:
        """From all other IDCs; its clients reach it."""
        for other in self.idcs:
            if other != idc:
                await self.cut(idc, other)

    async def heal(self) -> None:
        for a, b in combinations(self.idcs, 2):
            await self._link(a, b, "pass")

    async def _link(self, a: str, b: str, mode: str) -> None:
        fault = pb.LinkFault(from_idc=a, to_idc=b, mode=mode, both_ways=True)
        await self._fault(LINKPROXY, pb.FaultRequest(link=fault))

    async def clock_offset(self, idc: str, offset_ms: int) -> None:
        fault = pb.ClockFault(offset_ms=offset_ms)
        await self._fault(idc, pb.FaultRequest(clock=fault))

    async def disk_full(self, idc: str, full: bool) -> None:
        await self._fault(idc, pb.FaultRequest(disk=pb.DiskFault(full=full)))

    async def disk_slow(self, idc: str, fsync_delay_ms: int) -> None:
        """0: as fast as it is."""
        fault = pb.DiskFault(fsync_delay_ms=fsync_delay_ms)
        await self._fault(idc, pb.FaultRequest(disk=fault))

    async def _fault(self, name: str, request: pb.FaultRequest) -> None:
        await admin.fault(self.target, name, request, ANSWER_S)

    # ------------------------------------------------------------------------------- commands

    async def imctl(self, *arguments: str) -> tuple[int, str]:
        """The command as a user types it: exit status, and what it said."""
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "imctl", *arguments, "--data", str(self.target.data),
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await process.communicate()
        self.target.look_again()
        return process.returncode or 0, said.decode()

    # -------------------------------------------------------------------------------- traffic

    async def failback(self, idc: str) -> None:
        async with asyncio.timeout(MOVE_S):
            await self._moves.failback(idc)

    async def all_active(self) -> None:
        """Give every IDC that is out its clients back. A failover that was under way when its IDC
        came back ends a failback early, even between two steps; then it is asked for again. While
        somebody votes against one it may still be taken out."""
        async with asyncio.timeout(2 * MOVE_S):
            while (out := _out(await self.policy())) or await self._control.votes():
                if not out:
                    await asyncio.sleep(POLL_S)
                    continue
                with contextlib.suppress(Failed):
                    await self._moves.failback(out[0])

    async def switchover(self, source: str, target: str) -> None:
        async with asyncio.timeout(MOVE_S):
            await self._moves.switchover(source, target)

    async def change(self, kind: str, idc: str) -> None:
        """Ask the evaluator until it says yes."""
        request = f"{kind}-{idc}-{self.clock.wall_ms()}"

        async def committed() -> bool:
            with contextlib.suppress(Unavailable):
                decision = await self._control.submit(Change(kind, idc, request, "drill"))
                return decision.policy is not None
            return False

        await until(committed, WAIT_S, f"{kind} of {idc} is not committed")

    async def policy(self) -> Policy:
        """The committed one; waits until a majority of the registries answers."""

        async def read() -> Policy | None:
            with contextlib.suppress(Unavailable):
                return await self._control.policy()
            return None

        found = await until(read, WAIT_S, "no policy can be read")
        assert found is not None
        return found

    async def policy_epoch(self) -> int:
        return (await self.policy()).epoch

    async def policy_state(self, idc: str) -> str:
        return str((await self.policy()).state(idc))

    async def wait_state(self, idc: str, state: str, seconds: float = WAIT_S) -> None:
        async def holds() -> bool:
            return await self.policy_state(idc) == state

        await until(holds, seconds, f"the policy does not call {idc} {state}")

    # -------------------------------------------------------------------------------- looking

    async def status(self, idc: str) -> dict[str, Any]:
        return await admin.status(self.target, idc, ANSWER_S)

    async def alarms(self, idc: str) -> str:
        return "; ".join((await self.status(idc))["alarms"])

    async def wait_alarm(self, idc: str, words: str, seconds: float = WAIT_S) -> str:
        """Until the status says something with these words; returns all alarms."""

        async def said() -> str:
            alarms = await self.alarms(idc)
            return alarms if words in alarms else ""

        return await until(said, seconds, f"{idc} raises no alarm about {words!r}")

    async def wait_calm(self, idc: str, seconds: float = WAIT_S) -> None:
        """Until it has no alarm. Raises Unavailable with what it still says."""

        async def calm() -> bool:
            return not await self.alarms(idc)

        try:
            await until(calm, seconds, f"{idc} does not stop its alarms")
        except Unavailable as error:
            raise Unavailable(f"{error}: {await self.alarms(idc)}") from error

    async def wait_gateways(self, idc: str, count: int) -> None:
        """Until so many serve there."""

        async def holds() -> bool:
            return len((await self.status(idc))["gateways"]) == count

        await until(holds, WAIT_S, f"the gateways of {idc} are not all there")

    async def hashes(self, idcs: Iterable[str] | None = None) -> Hashes:
        """Of the replicated state, by an independent scan: (partition, hash, rows) by IDC."""

        async def one(idc: str) -> tuple[tuple[int, bytes, int], ...]:
            async with self._admin(idc) as stub:
                reply = await stub.StateHash(pb.StateHashRequest(), timeout=self.hash_timeout_s)
                return tuple((p.partition, p.hash, p.rows) for p in reply.partitions)

        names = list(idcs or self.idcs)
        found = await asyncio.gather(*(one(idc) for idc in names))
        return dict(zip(names, found, strict=True))

    async def converged(self, seconds: float = WAIT_S, idcs: Iterable[str] | None = None) -> Hashes:
        """Until all these hold the same, and hold it still a second later. One that does not answer
        now may be starting again from a snapshot. Raises Unavailable."""

        async def equal() -> Hashes | None:
            try:
                first = await self.hashes(idcs)
                if len(set(first.values())) > 1:
                    return None
                await asyncio.sleep(1.0)
                return first if await self.hashes(idcs) == first else None
            except grpc.aio.AioRpcError as error:
                if error.code() is not grpc.StatusCode.UNAVAILABLE:
                    raise
                return None

        try:
            found = await until(equal, seconds, "the state hashes do not become equal", 0.3)
        except Unavailable as error:
            raise Unavailable(f"{error}: {_differing(await self.hashes(idcs))}") from error
        assert found is not None
        return found

    @contextlib.asynccontextmanager
    async def _admin(self, name: str) -> AsyncIterator[rpc.AdminAsyncStub]:
        address = self.target.address(name)
        async with grpc_channel(self.target.pki, Role.ADMIN, name, address) as channel:
            yield rpc.AdminStub(channel)


def _differing(hashes: Mapping[str, tuple[tuple[int, bytes, int], ...]]) -> str:
    rows = []
    for idc, partitions in hashes.items():
        shown = " ".join(f"{n}:{digest.hex()[:6]}/{count}" for n, digest, count in partitions)
        rows.append(f"{idc} {shown}")
    return "; ".join(rows)


def _out(policy: Policy) -> list[str]:
    """IDCs that do not get all of their clients."""
    return [
        idc
        for idc, row in policy.idcs.items()
        if row.state is not IdcState.ACTIVE or row.ramp < 100
    ]
