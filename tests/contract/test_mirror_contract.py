"""What every Mirror adapter must do, over real connections and real logs on loopback. A further
adapter adds its network to ADAPTERS: how logs are served, and who follows them."""

from __future__ import annotations

import asyncio
import contextlib
import random
import secrets
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path

import grpc
import pytest

from imcore.proto import peer_pb2_grpc as rpc
from imcore.runtime import SystemClock
from imcore.tls import SERVER_OPTIONS, grpc_channel, grpc_server_credentials
from imcore.words import Origin
from imctl.testing.kafka import KafkaProcess
from services.engines.disk import RealDisk
from services.engines.kafka.log_store import KafkaLogStore
from services.engines.log_store import SegmentLogStore
from services.engines.records import record_after
from services.mirror.follow import GAP_S, Follower
from services.mirror.progress import Progress
from services.mirror.serve import LogsService
from services.ports import Log, LogEnd, LogStore, Mirror, Record

PARTITIONS = 2
FRA = Origin("fra", 1)
NAMES = ("fra", "iad", "sin", "witness")  # the names that the pki of the tests has
PAYLOAD = 200


class Link:
    """A TCP link that can be cut after so many bytes."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self.left: int | None = None  # bytes until the next cut; None: never
        self.cuts = 0
        self.passed = 0  # bytes
        self.port = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        self._server.close()
        self._drop()
        await self._server.wait_closed()

    def _drop(self) -> None:
        for writer in self._writers:
            writer.transport.abort()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            there, out = await asyncio.open_connection("127.0.0.1", self._target)
            self._writers |= {writer, out}
            await asyncio.gather(self._copy(reader, out), self._copy(there, writer, counted=True))
            self._writers -= {writer, out}

    async def _copy(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, counted: bool = False
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(8192):
                self.passed += len(data) if counted else 0
                if counted and self.left is not None:
                    self.left -= len(data)
                    if self.left <= 0:
                        self.left, self.cuts = None, self.cuts + 1
                        self._drop()
                        return
                writer.write(data)
                await writer.drain()
        writer.close()


class Idc:
    """One IDC's logs, and what is heard of the others' copies."""

    def __init__(self, name: str, folder: Path, open_store: OpenStore) -> None:
        self.name, self.folder = name, folder
        self._open_store = open_store
        self.disk = RealDisk()
        self.progress = Progress(lambda *told: None, PARTITIONS)
        self.seals: dict[Origin, int] = {}
        self.port = 0

    async def open(self) -> None:
        self.store = await self._open_store(self)
        self.own = await self.store.open_own(Origin(self.name, 1))

    def seal_of(self, origin: Origin, partition: int) -> int | None:
        return self.seals.get(origin)

    def held_by(self, idc: str) -> list[int]:
        """What that IDC has reported to hold of the own log."""
        ends = self.progress.held.get((idc, self.own.origin), {})
        return [ends.get(partition, 0) for partition in range(PARTITIONS)]

    async def write(self, count: int, partition: int = 0, size: int = PAYLOAD) -> None:
        for start in range(0, count, 50):
            payloads = [random.randbytes(size) for _ in range(min(50, count - start))]
            done: asyncio.Future[Sequence[Record] | Exception]
            done = asyncio.get_running_loop().create_future()
            self.own.append(partition, 1, payloads, done.set_result)
            assert not isinstance(await done, Exception)

    async def copy(self, origin: Origin) -> Log:
        return await self.store.open_copy(origin)

    async def take(self, source: Log, last: int, partition: int = 0) -> None:
        """Hold records 1 to ``last`` of a log, as a mirror would have brought them."""
        records = await read_all(source, partition)
        await (await self.copy(source.origin)).append_copy(records[:last])


OpenStore = Callable[[Idc], Awaitable[LogStore]]


def segment_files(request: pytest.FixtureRequest) -> OpenStore:
    # Small segments, so that whole ones can be cut away.
    async def open_store(idc: Idc) -> LogStore:
        path = str(idc.folder / idc.name)
        return await SegmentLogStore.open(
            path, PARTITIONS, idc.disk, random.Random(1), segment_bytes=20_000
        )

    return open_store


def on_kafka(request: pytest.FixtureRequest) -> OpenStore:
    """One broker for all of them, which never see each other's topics."""
    process: KafkaProcess = request.getfixturevalue("kafka_process")
    prefix = f"mirror-{secrets.token_hex(4)}"

    async def open_store(idc: Idc) -> LogStore:
        settings = process.settings(f"{prefix}.{idc.name}")
        return await KafkaLogStore.open(
            settings, idc.name, PARTITIONS, random.Random(1), step_bytes=20_000
        )

    return open_store


class GrpcTail:
    """The gRPC tail of services.mirror."""

    def __init__(self, folder: Path, pki: Path, open_store: OpenStore) -> None:
        self._pki = pki
        self.idcs = {name: Idc(name, folder, open_store) for name in NAMES}
        self._servers: dict[str, grpc.aio.Server] = {}
        self._services: dict[str, LogsService] = {}
        self._running: list[asyncio.Task[None]] = []
        self._channels: list[grpc.aio.Channel] = []
        self.links: dict[str, Link] = {}

    async def open(self) -> None:
        for idc in self.idcs.values():
            await idc.open()

    async def serve(self, *names: str) -> None:
        for name in names:
            idc = self.idcs[name]
            service = LogsService(
                name, idc.store, PARTITIONS, idc.progress, lambda origin: {}, SystemClock()
            )
            service.origin, service.seal_of = idc.own.origin, idc.seal_of
            server = grpc.aio.server(options=SERVER_OPTIONS)
            rpc.add_LogsServicer_to_server(service, server)
            credentials = grpc_server_credentials(self._pki, name)
            idc.port = server.add_secure_port(f"127.0.0.1:{idc.port}", credentials)
            await server.start()
            self._servers[name], self._services[name] = server, service

    async def silence(self, name: str) -> None:
        await self._servers.pop(name).stop(0)

    async def link(self, name: str) -> Link:
        """From now on mirrors reach this IDC by a link that can be cut."""
        link = self.links[name] = Link(self.idcs[name].port)
        await link.start()
        return link

    def source_alarms(self, name: str) -> list[str]:
        return self._services[name].alarms()

    def mirror(
        self,
        own: str,
        of: str,
        missed: Callable[[str], None] | None = None,
        gap_s: float = GAP_S,
    ) -> Mirror:
        """Starts to follow."""
        idc = self.idcs[own]
        channels = {}
        for name, other in self.idcs.items():
            if name != own and (name in self._servers or name in self.links or name == of):
                port = self.links[name].port if name in self.links else other.port or 1
                channels[name] = grpc_channel(self._pki, own, name, f"127.0.0.1:{port}")
        self._channels += channels.values()
        mirror: Mirror = Follower(
            of, own, PARTITIONS, idc.store, channels, idc.progress,
            lambda origin: {}, idc.seal_of, SystemClock(), gap_s=gap_s,
        )  # fmt: skip
        mirror.missed = missed
        self._running.append(asyncio.ensure_future(mirror.run()))
        return mirror

    async def close(self) -> None:
        for task in self._running:
            assert not task.done(), "no fault of a source ends a mirror"
            task.cancel()
        await asyncio.gather(*self._running, return_exceptions=True)
        for channel in self._channels:
            await channel.close(None)
        for name in list(self._servers):
            await self.silence(name)
        for link in self.links.values():
            await link.stop()
        for idc in self.idcs.values():
            await idc.store.close()


Adapter = tuple[type[GrpcTail], Callable[[pytest.FixtureRequest], OpenStore]]
ADAPTERS: dict[str, Adapter] = {
    "grpc-tail": (GrpcTail, segment_files),
    "grpc-tail-on-kafka": (GrpcTail, on_kafka),
}


@contextlib.asynccontextmanager
async def opened(
    request: pytest.FixtureRequest, name: str, folder: Path, pki: Path
) -> AsyncIterator[GrpcTail]:
    mirror, stores = ADAPTERS[name]
    network = mirror(folder, pki, stores(request))
    await network.open()
    yield network
    await network.close()


@pytest.fixture(params=sorted(ADAPTERS))
async def network(
    request: pytest.FixtureRequest, tmp_path: Path, pki_dir: Path
) -> AsyncIterator[GrpcTail]:
    async with opened(request, request.param, tmp_path, pki_dir) as network:
        yield network


@pytest.fixture
async def disk_network(
    request: pytest.FixtureRequest, tmp_path: Path, pki_dir: Path
) -> AsyncIterator[GrpcTail]:
    """Logs on files of ours, for what only a disk under our own hands can be made to do."""
    async with opened(request, "grpc-tail", tmp_path, pki_dir) as network:
        yield network


async def read_all(log: Log, partition: int) -> list[Record]:
    records: list[Record] = []
    lsn = log.first_lsn(partition)
    while page := await log.read(partition, lsn, 64 * 1024):
        records += page
        lsn = page[-1].lsn + 1
    return records


async def until(condition: Callable[[], bool], seconds: float = 30) -> None:
    async with asyncio.timeout(seconds):
        while not condition():  # noqa: ASYNC110  # nothing tells when a copy in another IDC grows
            await asyncio.sleep(0.01)


async def same(copy: Log, source: Log) -> None:
    """Both hold the same records in every partition."""
    for partition in range(PARTITIONS):
        assert copy.end(partition) == source.end(partition)
        assert await read_all(copy, partition) == await read_all(source, partition)


async def test_every_partition_is_copied_and_reported_as_held(network: GrpcTail) -> None:
    fra, iad = network.idcs["fra"], network.idcs["iad"]
    await network.serve("fra")
    mirror = network.mirror("iad", of="fra")
    await fra.write(120)
    await fra.write(30, partition=1)
    await until(lambda: fra.held_by("iad") == [120, 30])
    await same(await iad.copy(FRA), fra.own)
    assert (mirror.source, mirror.alarm, mirror.behind()) == ("fra", None, 0)
    assert mirror.heard_at > 0


async def test_it_resumes_after_a_stream_that_breaks_in_the_middle_of_a_batch(
    network: GrpcTail,
) -> None:
    fra, iad = network.idcs["fra"], network.idcs["iad"]
    await network.serve("fra")
    link = await network.link("fra")
    await fra.write(2_000, size=1_000)
    await fra.write(500, partition=1)
    copy = await iad.copy(FRA)
    link.left = 300_000
    mirror = network.mirror("iad", of="fra")
    for cut in (1, 2, 3):
        await until(lambda cut=cut: link.cuts == cut)  # type: ignore[misc]
        link.left = 400_000
    link.left = None
    await until(lambda: fra.held_by("iad") == [2_000, 500], 30)
    await same(copy, fra.own)
    assert mirror.alarm is None


async def test_a_record_is_reported_as_held_only_once_it_is_durable(disk_network: GrpcTail) -> None:
    fra, iad = disk_network.idcs["fra"], disk_network.idcs["iad"]
    await disk_network.serve("fra")
    disk_network.mirror("iad", of="fra")
    await fra.write(1)
    await until(lambda: fra.held_by("iad") == [1, 0])
    copy = await iad.copy(FRA)
    iad.disk.faults.fsync_delay_ms = 500
    began = asyncio.get_running_loop().time()
    await fra.write(1)
    # It has arrived, and is on its way to the disk.
    await until(lambda: copy.end(0).lsn != 1 or fra.held_by("iad") != [1, 0])
    assert asyncio.get_running_loop().time() - began >= 0.5
    await until(lambda: fra.held_by("iad") == [2, 0])


async def test_a_copy_whose_disk_fails_goes_on_once_it_can(disk_network: GrpcTail) -> None:
    fra, iad = disk_network.idcs["fra"], disk_network.idcs["iad"]
    await disk_network.serve("fra")
    iad.disk.faults.full = True
    mirror = disk_network.mirror("iad", of="fra")
    await fra.write(10)
    await until(lambda: mirror.alarm is not None)
    assert "full" in (mirror.alarm or "")
    assert fra.held_by("iad") == [0, 0]
    iad.disk.faults.full = False
    await until(lambda: fra.held_by("iad") == [10, 0])
    assert mirror.alarm is None


async def test_while_the_origin_is_away_the_longest_copy_is_the_source(network: GrpcTail) -> None:
    fra, iad, sin = (network.idcs[name] for name in ("fra", "iad", "sin"))
    await fra.write(100)
    await iad.take(fra.own, 60)
    await sin.take(fra.own, 100)
    await network.serve("iad", "sin")
    mirror = network.mirror("witness", of="fra")
    copy = await network.idcs["witness"].copy(FRA)
    await until(lambda: copy.end(0) == fra.own.end(0))
    assert mirror.source == "sin"
    await network.serve("fra")  # on a port that nobody knew before: reached by a mirror made anew
    network.mirror("witness", of="fra")
    await fra.write(1)
    await until(lambda: copy.end(0).lsn == 101)
    await same(copy, fra.own)


async def test_records_that_come_from_two_sources_are_taken_once(network: GrpcTail) -> None:
    fra, sin = network.idcs["fra"], network.idcs["sin"]
    await fra.write(500)
    await sin.take(fra.own, 500)
    await network.serve("sin")
    relay = network.mirror("iad", of="fra")
    await network.serve("fra")
    direct = network.mirror("iad", of="fra")
    await fra.write(500)
    copy = await network.idcs["iad"].copy(FRA)
    await until(lambda: copy.end(0).lsn == 1_000)
    await same(copy, fra.own)
    assert (relay.alarm, direct.alarm) == (None, None)


async def test_another_history_alarms_and_never_forks_the_copy(network: GrpcTail) -> None:
    fra, iad = network.idcs["fra"], network.idcs["iad"]
    copy, end = await iad.copy(FRA), LogEnd(0, bytes(16), 0)
    for number in range(3):
        record = record_after(end, 0, 1, b"of another history %d" % number)
        await copy.append_copy([record])
        end = copy.end(0)
    before = await read_all(copy, 0)
    await fra.write(10)
    await network.serve("fra")
    mirror = network.mirror("iad", of="fra")
    await until(lambda: mirror.alarm is not None)
    assert "does not continue" in (mirror.alarm or "")
    await asyncio.sleep(0.5)
    assert await read_all(copy, 0) == before


async def test_an_origin_that_ends_below_its_copy_alarms(network: GrpcTail) -> None:
    """It lost its end, and did not take the next incarnation (rule 6)."""
    fra, iad = network.idcs["fra"], network.idcs["iad"]
    await fra.write(3)
    await iad.take(fra.own, 3)
    ahead = record_after(fra.own.end(0), 0, 1, b"lost at its origin")
    await (await iad.copy(FRA)).append_copy([ahead])
    await network.serve("fra")
    mirror = network.mirror("iad", of="fra")
    await until(lambda: mirror.alarm is not None)
    assert "below the 4 held here" in (mirror.alarm or "")


async def cut_away(idc: Idc) -> None:
    await idc.own.truncate_below(0, idc.own.end(0).lsn)
    assert idc.own.first_lsn(0) > 1


async def test_what_the_origin_has_cut_away_comes_from_another(network: GrpcTail) -> None:
    fra, sin = network.idcs["fra"], network.idcs["sin"]
    for _ in range(10):
        await fra.write(50)
    await sin.take(fra.own, 500)
    whole = await read_all(fra.own, 0)
    await cut_away(fra)
    await network.serve("fra", "sin")
    missed: list[str] = []
    mirror = network.mirror("iad", of="fra", missed=missed.append)
    copy = await network.idcs["iad"].copy(FRA)
    await until(lambda: copy.end(0) == fra.own.end(0))
    assert await read_all(copy, 0) == whole
    await fra.write(1)  # and it goes on from the origin
    await until(lambda: copy.end(0) == fra.own.end(0) and mirror.source == "fra")
    assert missed == []


async def test_it_says_so_when_nobody_has_the_next_records_any_more(network: GrpcTail) -> None:
    fra = network.idcs["fra"]
    for _ in range(10):
        await fra.write(50)
    await cut_away(fra)
    await network.serve("fra", "sin")
    missed: list[str] = []
    network.mirror("iad", of="fra", missed=missed.append)
    await until(lambda: bool(missed))
    assert missed[0].startswith("fra no longer")


@pytest.mark.parametrize("who", ["fra", "iad"], ids=["by the source", "by the copy"])
async def test_nothing_above_a_seal_is_copied(network: GrpcTail, who: str) -> None:
    fra = network.idcs["fra"]
    network.idcs[who].seals[FRA] = 40
    await fra.write(50)
    await network.serve("fra")
    mirror = network.mirror("iad", of="fra")
    copy = await network.idcs["iad"].copy(FRA)
    await until(lambda: copy.end(0).lsn == 40)
    await asyncio.sleep(0.7)
    assert copy.end(0).lsn == 40
    assert mirror.alarm is None


def spoil(idc: Idc, payload: bytes) -> None:
    """One bit of a record on disk goes bad, after it has been known to be whole."""
    for file in (idc.folder / idc.name / "logs" / str(FRA) / "0").glob("*.seg"):
        data = file.read_bytes()
        if (at := data.find(payload)) >= 0:
            with open(file, "r+b") as out:
                out.seek(at + 5)
                out.write(bytes([data[at + 5] ^ 1]))
            return
    raise AssertionError("no segment holds this payload")


async def test_a_damaged_record_comes_from_another_and_both_sides_alarm(
    disk_network: GrpcTail,
) -> None:
    fra, sin = disk_network.idcs["fra"], disk_network.idcs["sin"]
    for _ in range(40):
        await fra.write(1, size=30_000)  # more than is kept in memory
    whole = await read_all(fra.own, 0)
    await sin.take(fra.own, 40)
    spoil(fra, whole[4].payload)
    await disk_network.serve("fra")
    mirror = disk_network.mirror("iad", of="fra")
    copy = await disk_network.idcs["iad"].copy(FRA)
    await until(lambda: mirror.alarm is not None and copy.end(0).lsn == 4)
    assert mirror.alarm == "fra cannot read lsn 5 of fra.1 partition 0 any more"
    assert disk_network.source_alarms("fra") == [
        "lsn 5 of fra.1 partition 0 is damaged here and cannot be read"
    ]
    await fra.write(3, partition=1)  # what is not damaged goes on
    await until(lambda: copy.end(1).lsn == 3)
    await disk_network.serve("sin")
    relayed = disk_network.mirror("iad", of="fra")
    await until(lambda: copy.end(0) == fra.own.end(0))
    assert await read_all(copy, 0) == whole
    await fra.write(1)
    await until(lambda: copy.end(0) == fra.own.end(0) and relayed.source == "fra")
    assert [it.alarm for it in (mirror, relayed)] == [None, None]


# ------------------------------------------------------------ copies that something else fills


def fill_from_outside(idc: Idc) -> None:
    idc.store.filled_from_outside = True


async def test_what_something_else_brings_is_reported_and_not_sent_again(
    network: GrpcTail,
) -> None:
    fra, iad = network.idcs["fra"], network.idcs["iad"]
    fill_from_outside(iad)
    await network.serve("fra")
    link = await network.link("fra")
    mirror = network.mirror("iad", of="fra")
    for last in (100, 200, 300):
        await fra.write(100, size=1_000)
        await iad.take(fra.own, last)
    await until(lambda: fra.held_by("iad") == [300, 0])
    await same(await iad.copy(FRA), fra.own)
    assert link.passed < 100_000, "300,000 bytes of records stayed where they were"
    assert (mirror.source, mirror.alarm, mirror.behind()) == ("fra", None, 0)


async def test_a_gap_that_stays_is_filled(network: GrpcTail) -> None:
    fra, iad = network.idcs["fra"], network.idcs["iad"]
    fill_from_outside(iad)
    await network.serve("fra")
    await fra.write(20)
    await fra.write(10, partition=1)
    await iad.take(fra.own, 10)
    copy = await iad.copy(FRA)
    mirror = network.mirror("iad", of="fra", gap_s=1.0)
    await until(lambda: mirror.behind() == 20)
    assert [copy.end(0).lsn, copy.end(1).lsn] == [10, 0], "it may still come by itself"
    await until(lambda: fra.held_by("iad") == [20, 10])
    await same(copy, fra.own)
    await fra.write(5)
    await iad.take(fra.own, 25)  # and the other goes on
    await until(lambda: fra.held_by("iad") == [25, 10])
    assert mirror.alarm is None


async def test_what_an_origin_that_is_away_leaves_is_fetched_at_once(network: GrpcTail) -> None:
    fra, iad, sin = (network.idcs[name] for name in ("fra", "iad", "sin"))
    fill_from_outside(iad)
    await fra.write(30)
    await sin.take(fra.own, 30)
    await iad.take(fra.own, 10)
    await network.serve("sin")
    mirror = network.mirror("iad", of="fra", gap_s=1_000.0)
    copy = await iad.copy(FRA)
    await until(lambda: copy.end(0).lsn == 30)
    assert mirror.source == "sin"
    await same(copy, fra.own)
