"""A real etcd for tests: killed, paused, wiped and filled as they like."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path

from imctl.engines.binaries import Program
from imctl.engines.etcd import Server
from imctl.target.places import free_port, free_ports
from imctl.testing.child import Child, started
from services.engines.etcd import etcd_pb2 as pb
from services.engines.etcd.client import EtcdSettings, Stubs

QUOTA_BYTES = 4 << 20
START_S = 20.0
PIECE = b"x" * (1 << 19)


class EtcdProcess(Child):
    """TLS on, as the server ``iad`` of a pki folder that lets ``fra`` in."""

    def __init__(
        self,
        program: Program,
        folder: Path,
        pki: Path,
        port: int,
        members: Mapping[str, str] | None = None,
        host: str = "127.0.0.1",
    ) -> None:
        """``members``: name -> peer URL of every member of its cluster; the folder's name is its
        own. None: it is the only one. ``host``: an address of this machine at which it is
        reached."""
        self._binary = program.path
        self._members = members
        super().__init__("etcd", folder / "etcd.log")
        self.server = Server(
            "fra", folder / "etcd", f"{host}:{port}", pki, "iad", "fra", QUOTA_BYTES
        )

    def settings(self, prefix: str, name: str = "fra") -> EtcdSettings:
        pki = self.server.pki
        return EtcdSettings(
            endpoints=(self.server.address,),
            prefix=prefix,
            ca=(pki / "ca.pem").read_bytes(),
            certificate=(pki / f"{name}.pem").read_bytes(),
            key=(pki / f"{name}.key").read_bytes(),
        )

    # -------------------------------------------------------------------------- processes

    def _command(self) -> list[str]:
        command = self.server.command(self._binary)
        if self._members is None:
            return command
        own = self._members[self.server.data.parent.name]
        flags = {
            "name": self.server.data.parent.name,
            "initial-cluster": ",".join(f"{name}={url}" for name, url in self._members.items()),
            "initial-cluster-token": "members",
            "listen-peer-urls": own,
            "initial-advertise-peer-urls": own,
        }
        # The last one of a flag counts.
        return [*command, *(f"--{flag}={value}" for flag, value in flags.items())]

    def start(self) -> None:
        """Until it serves."""
        self.begin()
        self.wait()

    def begin(self) -> None:
        self.spawn(self._command())

    def wait(self) -> None:
        """Until it serves."""
        self.until_ready(self.server.healthy, START_S)

    def wipe(self) -> None:
        shutil.rmtree(self.server.data)

    # ------------------------------------------------------------------------ what it holds

    @contextlib.asynccontextmanager
    async def stubs(self) -> AsyncIterator[Stubs]:
        """For what the registry never does itself."""
        stubs = Stubs(self.server.address, self.settings(""))
        try:
            yield stubs
        finally:
            await stubs.channel.close(None)

    async def compact(self) -> None:
        """Forget the history."""
        async with self.stubs() as on:
            head = (await on.kv.Range(pb.RangeRequest(key=b"x", count_only=True))).header.revision
            await on.kv.Compact(pb.CompactionRequest(revision=head, physical=True))

    @contextlib.asynccontextmanager
    async def full(self) -> AsyncIterator[None]:
        """Its quota is used up, really; within the block nothing can be written."""
        async with self.stubs() as on:
            number = 0
            with contextlib.suppress(Exception):
                while True:
                    await on.kv.Put(pb.PutRequest(key=b"fill/%d" % number, value=PIECE))
                    number += 1
        assert number > 0
        try:
            yield
        finally:
            await self.empty()

    async def empty(self) -> None:
        """What an operator does about a full etcd: delete, compact, defragment, disarm."""
        async with self.stubs() as on:
            await on.kv.DeleteRange(pb.DeleteRangeRequest(key=b"fill/", range_end=b"fill0"))
            await self.compact()
            await on.maintenance.Defragment(pb.DefragmentRequest())
            member = (await on.maintenance.Status(pb.StatusRequest())).header.member_id
            disarm = pb.AlarmRequest.DEACTIVATE
            await on.maintenance.Alarm(
                pb.AlarmRequest(action=disarm, memberID=member, alarm=pb.NOSPACE)
            )


@contextlib.contextmanager
def running(
    program: Program, folder: Path, pki: Path, host: str = "127.0.0.1"
) -> Iterator[EtcdProcess]:
    folder.mkdir(parents=True, exist_ok=True)
    with started(EtcdProcess(program, folder, pki, free_port(), host=host)) as etcd:
        yield etcd


@contextlib.contextmanager
def running_members(program: Program, folder: Path, pki: Path) -> Iterator[list[EtcdProcess]]:
    """One cluster of three."""
    ports = free_ports(6)
    names = ["one", "two", "three"]
    urls = {name: f"https://127.0.0.1:{port}" for name, port in zip(names, ports, strict=False)}
    members = []
    for name, port in zip(names, ports[3:], strict=True):
        (folder / name).mkdir(parents=True)
        members.append(EtcdProcess(program, folder / name, pki, port, urls))
    try:
        for member in members:
            member.begin()
        for member in members:
            member.wait()
        yield members
    finally:
        for member in members:
            member.kill()
