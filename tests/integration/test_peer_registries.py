"""What one IDC may write into another one's registry: rounds and its own store as a member, and
nothing else. Over gRPC with mutual TLS, attacked with the certificate of an IDC."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator, Callable
from dataclasses import replace
from pathlib import Path

import grpc.aio
import pytest

from imcore.errors import ImError, OutcomeUnknown, Refused
from imcore.proto import peer_pb2_grpc as rpc
from imcore.region.load import load_region
from imcore.runtime import SystemClock
from imctl.target.places import free_ports
from services.control.acceptor import (
    BUCKETS,
    Ballot,
    Member,
    Record,
    accept,
    bucket_of,
    decode,
    encode,
    promise,
    record_key,
)
from services.control.anchoring import anchor_key
from services.control.caspaxos import Proposer
from services.control.levels import LEVEL_KEY
from services.control.operations import operation_key
from services.engines.disk import RealDisk
from services.engines.registry_grpc import RegistryServicer, RemoteRegistry
from services.engines.registry_store import RegistryStore
from services.node.authorize import Authorizer
from services.node.identity import register_key
from services.node.media import STICKERS
from services.node.outside import Machine
from services.node.swaps import RegistryLimits
from services.policy.document import POLICY_KEY, initial
from services.ports import Registry, Versioned

IDCS = ("fra", "iad", "sin")
POLICY = initial(load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml"), 0)


class Lab:
    """Three registries, each reached by the others with their certificates."""

    def __init__(self, folder: Path, pki_dir: Path) -> None:
        self.folder, self.pki_dir = folder, pki_dir
        self.addresses = dict(
            zip(IDCS, (f"127.0.0.1:{port}" for port in free_ports(3)), strict=True)
        )
        self.stores: dict[str, RegistryStore] = {}
        self.servers: dict[str, grpc.aio.Server] = {}
        self.channels: list[grpc.aio.Channel] = []
        self.proposers: list[Proposer] = []

    async def start(self) -> None:
        for name in IDCS:
            await self.serve(name)
        await asyncio.gather(*(self.proposer(name).ensure_member() for name in IDCS))

    async def serve(self, name: str, folder: str = "") -> None:
        store = await RegistryStore.open(
            str(self.folder / (folder or name)), RealDisk(), SystemClock(), random.Random()
        )
        limits = RegistryLimits(name, store).limits
        server = Machine(self.pki_dir, name).server(
            [Authorizer(set(IDCS), limits)], self.addresses[name]
        )
        rpc.add_RegistryServicer_to_server(RegistryServicer(store), server)
        await server.start()
        self.stores[name], self.servers[name] = store, server

    async def lose(self, name: str) -> None:
        await self.servers.pop(name).stop(0)
        await self.stores.pop(name).close()

    async def stop(self) -> None:
        for proposer in self.proposers:
            await proposer.close()
        for channel in self.channels:
            await channel.close(None)
        for name in list(self.servers):
            await self.lose(name)

    def registry(self, caller: str, name: str) -> RemoteRegistry:
        channel = Machine(self.pki_dir, caller).channel(name, self.addresses[name])
        self.channels.append(channel)
        return RemoteRegistry(channel, name)

    def proposer(self, name: str) -> Proposer:
        """Of that IDC's process."""
        registries: dict[str, Registry] = {
            other: self.stores[name] if other == name else self.registry(name, other)
            for other in IDCS
        }
        proposer = Proposer(registries, name, SystemClock(), random.Random())
        self.proposers.append(proposer)
        return proposer

    async def record(self, name: str, key: str) -> tuple[bytes, int, Record]:
        store = self.stores[name]
        row = await store.get(record_key((await store.store_id()).hex(), bucket_of(key)))
        assert row is not None
        return row.key, row.mod_revision, decode(row.value)

    async def told(self, proposer: Proposer, key: str, value: bytes) -> None:
        """Committed, until all three hold it: a majority is enough for a commit."""
        async with asyncio.timeout(10):
            while True:
                await proposer.change(key, to(value))
                records = [(await self.record(name, key))[2] for name in IDCS]
                if {record.slot(key).value for record in records} == {value}:
                    return

    async def swap(
        self, caller: str, name: str, key: str, made: Callable[[Record], Record | None]
    ) -> bool:
        """One swap of a record by the caller. Raises Refused."""
        where, revision, record = await self.record(name, key)
        changed = made(record)
        assert changed is not None
        swapped, _ = await self.registry(caller, name).compare_and_swap(
            where, revision, encode(changed)
        )
        return swapped


@pytest.fixture
async def lab(tmp_path: Path, pki_dir: Path) -> AsyncIterator[Lab]:
    found = Lab(tmp_path, pki_dir)
    await found.start()
    yield found
    await found.stop()


def anchor(seq: int) -> bytes:
    return b'{"seq": %d, "hash": "00"}' % seq


def to(value: bytes) -> Callable[[bytes | None], bytes]:
    return lambda _: value


# --------------------------------------------------------------------------------- leases


async def test_an_idc_neither_ends_nor_makes_nor_keeps_a_lease_of_another(lab: Lab) -> None:
    lease = await lab.stores["iad"].grant_lease(60_000)
    await lab.stores["iad"].put(b"gateway/iad-gw-1", b"{}", lease)
    fra = lab.registry("fra", "iad")
    for call in (fra.revoke_lease(lease), fra.keep_alive(lease), fra.grant_lease(60_000)):
        with pytest.raises(Refused, match=r"needs the certificate of iad; .* the name fra"):
            await call
    assert await lab.stores["iad"].get(b"gateway/iad-gw-1") is not None
    # Its own processes do: a gateway by itself registers so.
    own = lab.registry("iad", "iad")
    lease = await own.grant_lease(60_000)
    await own.put(b"gateway/iad-gw-2", b"{}", lease)
    assert await own.keep_alive(lease)
    await own.revoke_lease(lease)
    assert await lab.stores["iad"].get(b"gateway/iad-gw-2") is None


# ---------------------------------------------------------------- what stands in no record


@pytest.mark.parametrize("key", [b"vote/sin/iad", b"vote/sin/fra", b"gateway/iad-gw-1", b"x"])
async def test_an_idc_writes_no_vote_and_no_gateway_into_another_registry(
    lab: Lab, key: bytes
) -> None:
    await lab.stores["iad"].put(key, b"true")
    row = await lab.stores["iad"].get(key)
    assert row is not None
    fra = lab.registry("fra", "iad")
    for write in (
        fra.put(key, b"forged"),
        fra.put(key, None),
        fra.put(b"forged", b"forged"),
        fra.compare_and_swap(key, row.mod_revision, b"forged"),
        fra.compare_and_swap(key, row.mod_revision, None),
        fra.compare_and_swap(b"forged", 0, b"forged"),
        fra.compare_and_swap(key, row.mod_revision + 1, b"forged"),
    ):
        with pytest.raises(Refused, match="needs the certificate of iad"):
            await write
    assert await lab.stores["iad"].get(key) == row
    assert await lab.stores["iad"].get(b"forged") is None


async def test_records_are_swapped_only_as_they_are_and_never_put(lab: Lab) -> None:
    where, revision, record = await lab.record("iad", POLICY_KEY)
    promised = promise(record, POLICY_KEY, Ballot(1_000, "fra.1"))
    assert promised is not None
    fra = lab.registry("fra", "iad")
    for write in (
        fra.put(where, encode(promised)),
        fra.put(where, None),
        fra.compare_and_swap(where, revision, None),
        fra.compare_and_swap(where, revision, encode(promised), lease=1),
        fra.compare_and_swap(b"caspaxos/forged/00", 0, encode(record)),
    ):
        with pytest.raises(Refused, match="needs the certificate of iad"):
            await write
    assert await lab.record("iad", POLICY_KEY) == (where, revision, record)
    for other in (revision - 1, revision + 1):
        swapped, current = await fra.compare_and_swap(where, other, encode(promised))
        assert not swapped and current is not None and current.mod_revision == revision
    swapped, _ = await fra.compare_and_swap(where, revision, encode(promised))
    assert swapped


# ---------------------------------------------------------------------------- registers


@pytest.mark.parametrize(
    "key",
    [
        register_key("iad"),
        anchor_key("iad"),
        anchor_key("iad.2"),
        anchor_key("fra.10"),
        anchor_key("imctl"),
        "unheard/of",
    ],
)
async def test_an_idc_commits_nothing_under_the_name_of_another(lab: Lab, key: str) -> None:
    owner = lab.proposer("iad")
    if key.endswith("/iad"):
        await lab.told(owner, key, anchor(5))
    before = [(await lab.record(name, key))[2].slot(key).value for name in ("iad", "sin")]
    with pytest.raises(OutcomeUnknown):  # in its own registry it may say what it wants
        await lab.proposer("fra").change(key, to(anchor(9)))
    after = [(await lab.record(name, key))[2].slot(key).value for name in ("iad", "sin")]
    assert before == after
    value = anchor(5) if key.endswith("/iad") else None
    assert (await lab.proposer("sin").read(key))[0] == value


async def test_an_idc_commits_what_is_its_own_and_what_is_everybodys(lab: Lab) -> None:
    keys = (
        register_key("fra"),
        anchor_key("fra"),
        anchor_key("fra.2"),  # of its second core
        operation_key("drain-fra-1"),
        LEVEL_KEY,
        STICKERS,
    )
    for number, key in enumerate(keys):
        for name in IDCS if key in keys[3:] else ("fra",):
            value = anchor(number)
            assert await lab.proposer(name).change(key, to(value)) == value
    for epoch, name in enumerate(IDCS, 1):
        moved = replace(POLICY, epoch=epoch).to_json()
        assert await lab.proposer(name).change(POLICY_KEY, to(moved)) == moved


async def test_an_anchor_is_not_lowered_by_its_own_idc_either(lab: Lab) -> None:
    fra = lab.proposer("fra")
    await lab.told(fra, anchor_key("fra"), anchor(5))
    with pytest.raises(OutcomeUnknown):
        await fra.change(anchor_key("fra"), to(anchor(4)))
    assert (await lab.record("iad", anchor_key("fra")))[2].slot(anchor_key("fra")).value == anchor(
        5
    )


@pytest.mark.parametrize("there", ["fra", "sin"])
async def test_what_an_idc_left_half_done_is_settled_by_those_that_read_it(
    lab: Lab, there: str
) -> None:
    """One acceptor has it, and its IDC is gone: each of the others may say again what it holds."""
    key = register_key("iad")
    await lab.told(lab.proposer("iad"), key, b"1")
    ballot = Ballot(1_000, "iad.1")
    for made in (
        lambda record: promise(record, key, ballot),
        lambda record: accept(record, key, ballot, b"2"),
    ):
        while not await lab.swap("iad", there, key, made):
            pass  # a late call of the change before was between
    await lab.lose("iad")
    found: dict[str, bytes | None] = {}

    async def read(name: str) -> None:
        proposer = lab.proposer(name)
        while True:
            try:
                found[name], _ = await proposer.read(key)
                return
            except ImError:
                await asyncio.sleep(0.1)

    async with asyncio.timeout(30):
        await asyncio.gather(read("fra"), read("sin"))
    assert found == {"fra": b"2", "sin": b"2"}


# -------------------------------------------------------------------------------- rounds


async def test_nor_does_it_make_a_record_that_no_round_of_its_own_makes(lab: Lab) -> None:
    ballot = Ballot(1_000, "fra.1")
    policy = replace(POLICY, epoch=3).to_json()
    await lab.told(lab.proposer("iad"), POLICY_KEY, policy)

    def emptied(record: Record) -> Record:
        return replace(record, slots={})

    attacks: tuple[Callable[[Record], Record | None], ...] = (
        lambda record: promise(record, POLICY_KEY, Ballot(1_000, "iad.1")),
        lambda record: promise(record, POLICY_KEY, Ballot(1 << 70, "fra.1")),
        lambda record: accept(record, POLICY_KEY, ballot, b"rubbish"),
        lambda record: accept(record, POLICY_KEY, ballot, b"[" * 9_999),
        lambda record: accept(record, POLICY_KEY, ballot, replace(POLICY, epoch=2).to_json()),
        lambda record: accept(record, POLICY_KEY, ballot, replace(POLICY, epoch=1 << 70).to_json()),
        lambda record: accept(record, POLICY_KEY, ballot, None),
        emptied,
        lambda record: replace(record, joined=False),
        lambda record: replace(record, floor=ballot),
        lambda record: replace(record, members={}),
        lambda record: replace(record, members={**record.members, "sin": Member("ab" * 16, 2)}),
        lambda record: replace(record, members={**record.members, "fra": Member("ab" * 16, 7)}),
    )
    for made in attacks:
        before = await lab.record("iad", POLICY_KEY)
        with pytest.raises(Refused, match="needs the certificate of iad"):
            await lab.swap("fra", "iad", POLICY_KEY, made)
        assert await lab.record("iad", POLICY_KEY) == before
    where, revision, _ = await lab.record("iad", POLICY_KEY)
    with pytest.raises(Refused):
        await lab.registry("fra", "iad").compare_and_swap(where, revision, b"[" * 99_999)


async def test_what_is_swapped_unjudged_fails_though_it_meets_its_revision(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The revision that comes next is easily guessed: somebody else makes it meanwhile."""
    where, _, record = await lab.record("iad", POLICY_KEY)
    store, read = lab.stores["iad"], RegistryStore.get
    await store.put(b"last", b"")
    last = await store.get(b"last")
    assert last is not None

    async def slow(store: RegistryStore, key: bytes) -> Versioned | None:
        found = await read(store, key)
        monkeypatch.undo()
        await store.put(where, encode(record))
        return found

    monkeypatch.setattr(RegistryStore, "get", slow)
    following = last.mod_revision + 1
    swapped, _ = await lab.registry("fra", "iad").compare_and_swap(where, following, b"forged")
    assert not swapped
    row = await store.get(where)
    assert row is not None and (row.mod_revision, decode(row.value)) == (following, record)


async def test_a_registry_that_was_lost_comes_in_again(lab: Lab) -> None:
    await lab.proposer("iad").change(register_key("iad"), to(b"1"))
    await lab.lose("sin")
    await lab.serve("sin", "sin-anew")
    async with asyncio.timeout(30):
        await lab.proposer("sin").ensure_member()
    for bucket in range(BUCKETS):
        store = (await lab.stores["iad"].store_id()).hex()
        row = await lab.stores["iad"].get(record_key(store, bucket))
        assert row is not None
        assert decode(row.value).members["sin"].generation == 2
    assert (await lab.proposer("sin").read(register_key("iad")))[0] == b"1"
