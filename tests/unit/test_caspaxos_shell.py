"""The asyncio shell of CASPaxos over registries in memory, in the ways that they fail."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import AsyncIterator, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from imcore.errors import Code, OutcomeUnknown, Refused, Unavailable
from imcore.region.load import load_region
from imcore.runtime import SystemClock
from services.control import caspaxos, operations
from services.control.acceptor import Ballot, accept, bucket_of, decode, encode, record_key
from services.control.caspaxos import Proposer
from services.control.evaluate import Decision
from services.control.evidence import Evidence
from services.control.rules import Change, Kind
from services.policy.document import OperationState
from services.ports import Versioned, WatchEvents


class Memory:
    """A registry in memory that can be away, lose replies, and be wiped."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.away = False
        self.lose_replies = False
        self.wipes = 0
        self.wipe()

    def wipe(self) -> None:
        self.wipes += 1
        self.revision = 0
        self.data: dict[bytes, Versioned] = {}

    async def _reach(self) -> None:
        await asyncio.sleep(0)
        if self.away:
            raise Unavailable(f"{self.name} is away")

    async def store_id(self) -> bytes:
        await self._reach()
        return f"{self.name}{self.wipes}".encode()

    async def get(self, key: bytes) -> Versioned | None:
        await self._reach()
        return self.data.get(key)

    async def range(self, prefix: bytes, *more: bytes) -> list[Versioned]:
        await self._reach()
        rows = sorted(self.data.items())
        under = (prefix, *more)
        return [value for each in under for key, value in rows if key.startswith(each)]

    async def compare_and_swap(
        self, key: bytes, expected_mod_revision: int, value: bytes | None, lease: int = 0
    ) -> tuple[bool, Versioned | None]:
        await self._reach()
        current = self.data.get(key)
        if (current.mod_revision if current else 0) != expected_mod_revision:
            return False, current
        await self.put(key, value)
        if self.lose_replies:
            raise OutcomeUnknown("the reply was lost")
        return True, self.data.get(key)

    async def put(self, key: bytes, value: bytes | None, lease: int = 0) -> None:
        await self._reach()
        self.revision += 1
        if value is None:
            self.data.pop(key, None)
        else:
            self.data[key] = Versioned(key, value, self.revision, lease)

    async def grant_lease(self, ttl_ms: int) -> int:
        return 1

    async def keep_alive(self, lease: int) -> bool:
        return True

    async def revoke_lease(self, lease: int) -> None:
        return None

    async def watch(self, prefix: bytes, from_revision: int = 0) -> AsyncIterator[WatchEvents]:
        yield WatchEvents(self.revision, await self.range(prefix))


class ReadOnly:
    """A registry that takes no writes of this caller."""

    def __init__(self, registry: Memory) -> None:
        self._registry = registry
        self.store_id = registry.store_id
        self.get = registry.get
        self.range = registry.range

    async def compare_and_swap(
        self, key: bytes, expected_mod_revision: int, value: bytes | None, lease: int = 0
    ) -> tuple[bool, Versioned | None]:
        raise Refused(Code.FORBIDDEN, "it needs the role operator")


Region = Mapping[str, Memory]


def proposer(registries: Region, own: str, seed: int = 1) -> Proposer:
    return Proposer(registries, own, SystemClock(), random.Random(seed))


async def formed() -> tuple[dict[str, Memory], dict[str, Proposer]]:
    registries = {name: Memory(name) for name in ("fra", "iad", "sin")}
    proposers = {name: proposer(registries, name, n) for n, name in enumerate(registries)}
    await asyncio.gather(*(each.ensure_member() for each in proposers.values()))
    return registries, proposers


def add(token: str) -> Callable[[bytes | None], bytes]:
    """Idempotent, as ``Proposer.change`` asks of its functions."""

    def fn(current: bytes | None) -> bytes:
        tokens = json.loads(current) if current else []
        return json.dumps(tokens if token in tokens else [*tokens, token]).encode()

    return fn


async def test_a_first_start_needs_every_registry_once() -> None:
    registries = {name: Memory(name) for name in ("fra", "iad", "sin")}
    registries["sin"].away = True
    fra, iad = proposer(registries, "fra"), proposer(registries, "iad", 2)
    joins = [asyncio.create_task(each.ensure_member()) for each in (fra, iad)]
    await asyncio.wait(joins, timeout=0.4)
    assert not any(join.done() for join in joins)
    registries["sin"].away = False
    sin = proposer(registries, "sin", 3)
    await asyncio.gather(*joins, sin.ensure_member())
    assert await fra.change("policy", add("x")) == b'["x"]'


async def test_concurrent_changes_all_survive(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(caspaxos, "PATIENCE_S", 30.0)  # on a busy machine they overtake each other
    _, proposers = await formed()
    await asyncio.gather(
        *(
            each.change("policy", add(f"{name}{n}"))
            for name, each in proposers.items()
            for n in range(4)
        )
    )
    value, _ = await proposers["fra"].read("policy")
    assert len(json.loads(value or b"[]")) == 12


async def test_a_value_never_written_reads_as_none() -> None:
    _, proposers = await formed()
    assert (await proposers["iad"].read("op/1"))[0] is None


async def test_one_registry_away_stops_nothing_and_two_stop_everything(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(caspaxos, "PATIENCE_S", 0.2)
    registries, proposers = await formed()
    registries["sin"].away = True
    await proposers["fra"].change("policy", add("x"))
    registries["iad"].away = True
    with pytest.raises(Unavailable):
        await proposers["fra"].read("policy")
    with pytest.raises(Unavailable):
        await proposers["fra"].change("policy", add("y"))
    registries["iad"].away = False
    assert (await proposers["iad"].read("policy"))[0] == b'["x"]'


async def test_lost_replies_say_unknown_and_the_same_change_resolves_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(caspaxos, "PATIENCE_S", 0.1)
    registries, proposers = await formed()
    registries["sin"].away = True
    fra = proposers["fra"]
    await fra.change("policy", add("x"))

    def swallow(current: bytes | None) -> bytes:
        registries["iad"].lose_replies = True  # from the acceptance on
        return add("y")(current)

    with pytest.raises(OutcomeUnknown):
        await fra.change("policy", swallow)
    registries["iad"].lose_replies = False
    assert await fra.change("policy", add("y")) == b'["x", "y"]'


async def test_a_change_found_committed_by_its_own_lost_offer_has_its_record_all_the_same(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a later round of one call, and in a second call with the same request."""
    monkeypatch.setattr(caspaxos, "PATIENCE_S", 0.1)
    region = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")
    registries, proposers = await formed()
    registries["sin"].away = True
    clock, offered = SystemClock(), dict[str, operations.Offered]()

    async def ask(request: str, kind: str, losses: int) -> Decision:
        monkeypatch.setattr(registries["iad"], "compare_and_swap", losing(registries, losses))
        change = Change(kind, "fra", request, "operator", overrides=("evidence-age",))
        return await operations.commit(proposers["fra"], region, change, Evidence(), clock, offered)

    decision = await ask("1", Kind.DRAIN, 1)
    assert decision.policy is not None and not decision.repeated, decision.sentence
    with pytest.raises(OutcomeUnknown):
        await ask("2", Kind.UNDRAIN, 1000)
    assert not (await ask("2", Kind.UNDRAIN, 0)).repeated
    record, _ = await proposers["iad"].read(operations.operation_key(decision.operation))
    operation = operations.operation_from_json(record or b"")
    assert [step.name for step in operation.steps] == ["drain", "undrain"]
    assert operation.state is OperationState.ABORTED


def losing(registries: Region, losses: int) -> Callable[..., Any]:
    """The swap of a registry that loses so many of its replies to acceptances of a policy."""
    left = losses

    async def swap(
        key: bytes, expected: int, value: bytes, lease: int = 0
    ) -> tuple[bool, Versioned | None]:
        nonlocal left
        found = await Memory.compare_and_swap(registries["iad"], key, expected, value, lease)
        slot = decode(value).slots.get("policy")
        if found[0] and slot is not None and slot.accepted == slot.promised and left:
            left -= 1
            raise OutcomeUnknown("the reply was lost")
        return found

    return swap


async def test_what_the_function_raises_passes_through() -> None:
    _, proposers = await formed()

    def refuse(current: bytes | None) -> bytes:
        raise Refused(Code.BAD_REQUEST, "no")

    with pytest.raises(Refused):
        await proposers["fra"].change("policy", refuse)
    assert (await proposers["iad"].read("policy"))[0] is None


async def test_a_wiped_registry_abstains_until_all_others_answered() -> None:
    registries, proposers = await formed()
    await proposers["fra"].change("policy", add("x"))
    registries["fra"].wipe()
    registries["sin"].away = True
    restarted = proposer(registries, "fra", 9)
    join = asyncio.create_task(restarted.ensure_member())
    await asyncio.wait([join], timeout=0.4)
    assert not join.done()  # iad has the value, but sin may hold more
    registries["sin"].away = False
    await asyncio.wait_for(join, 10)
    registries["sin"].away = True
    assert (await proposers["iad"].read("policy"))[0] == b'["x"]'
    assert await restarted.change("policy", add("y")) == b'["x", "y"]'


async def viewing() -> tuple[dict[str, Memory], dict[str, Proposer], Proposer]:
    registries, proposers = await formed()
    only = {name: ReadOnly(registry) for name, registry in registries.items()}
    return registries, proposers, proposer(only, "viewer", 9)  # type: ignore[arg-type]


async def test_who_may_only_read_reads_and_is_told_at_once_that_it_may_not_write() -> None:
    _, proposers, viewer = await viewing()
    await proposers["fra"].change("policy", add("x"))
    assert (await viewer.read("policy"))[0] == b'["x"]'
    async with asyncio.timeout(caspaxos.PATIENCE_S / 2):
        with pytest.raises(Refused, match="needs the role operator"):
            await viewer.change("policy", add("y"))
    assert (await proposers["iad"].read("policy"))[0] == b'["x"]'


async def test_what_is_forbidden_for_one_key_says_nothing_of_another() -> None:
    registries, proposers, viewer = await viewing()
    await proposers["fra"].change("policy", add("x"))
    with pytest.raises(Refused):
        await viewer.change("idc/fra", add("y"))
    registries["iad"].away = registries["sin"].away = True
    with pytest.raises(Unavailable, match="no majority"):
        await viewer.read("policy")


async def test_who_may_only_read_does_not_settle_a_change_that_is_under_way() -> None:
    registries, proposers, viewer = await viewing()
    await proposers["fra"].change("policy", add("x"))
    # fra accepted what iad did not (whoever offered it died), and sin is away.
    key = record_key((await registries["fra"].store_id()).hex(), bucket_of("policy"))
    row = registries["fra"].data[key]
    more = accept(decode(row.value), "policy", Ballot(99, "dead.1"), b'["x","z"]')
    assert more is not None
    await registries["fra"].compare_and_swap(key, row.mod_revision, encode(more))
    registries["sin"].away = True
    with pytest.raises(Unavailable, match="not settled yet"):
        await viewer.read("policy")
    assert (await proposers["iad"].read("policy"))[0] in (b'["x"]', b'["x","z"]')
    assert (await viewer.read("policy"))[0] == (await proposers["iad"].read("policy"))[0]
