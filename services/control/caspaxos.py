"""CASPaxos, the asyncio shell: carries rounds and joins (``round``) to the registries.

A dead registry never delays a round: a majority of answers ends it, the rest goes on by itself.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Mapping

from imcore.errors import Code, ImError, OutcomeUnknown, Refused, Unavailable
from imcore.runtime import Clock
from services.control.acceptor import (
    BUCKETS,
    Ballot,
    Member,
    Record,
    bucket_of,
    chosen,
    decode,
    encode,
    majority,
    record_key,
)
from services.control.round import Call, Fn, Joining, Reply, Round, Status, next_ballot
from services.ports import Registry, Versioned

log = logging.getLogger("im.control")

CALL_S = 1.5  # one call to one registry; a WAN round trip is at most 0.25 s
PATIENCE_S = 4.0  # how long a change or read is tried again
_RETRY_S = 0.3


class Proposer:
    """Reads and changes committed values. ``own`` names the caller; when it is also one of the
    registries, ``ensure_member`` brings that registry's store in."""

    def __init__(
        self, registries: Mapping[str, Registry], own: str, clock: Clock, rng: random.Random
    ) -> None:
        self._registries = dict(registries)
        self._own = own
        self._clock = clock
        self._rng = rng
        # Two processes may act for one name (a restart); a ballot must still be used once only.
        self._proposer = f"{own}.{rng.getrandbits(64):016x}"
        self._counter = 0
        self._stores: dict[str, str] = {}
        self._cache: dict[tuple[str, int], tuple[str, int, Record]] = {}
        self._locks: dict[int, asyncio.Lock] = {}
        self._tasks: set[asyncio.Task[None]] = set()
        self._finding: set[str] = set()
        self._found = asyncio.Event()
        # Registries where the own name may not do this with that key; "": with any.
        self._forbidding: dict[tuple[str, str], Refused] = {}
        self.refused_join = ""  # why the own blank store cannot join by itself: an alarm

    async def close(self) -> None:
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---------------------------------------------------------------------------- changes

    async def change(self, key: str, fn: Callable[[bytes | None], bytes]) -> bytes:
        """Commit ``fn(current)`` and return it. ``fn`` is pure and is evaluated again on conflict:
        it must know its own earlier result (by a request id, say) and return that unchanged. What
        it raises passes through. Raises Unavailable (nothing was offered to any registry), Refused
        (nor was it, and registries forbid it to the own name) and OutcomeUnknown (it may be
        committed now or later: ask again with the same ``fn``)."""
        value = await self._change(key, fn)
        assert value is not None
        return value

    async def _change(self, key: str, fn: Fn) -> bytes | None:
        deadline = self._clock.now() + PATIENCE_S
        offered, attempt, seen = False, 0, Ballot(0, "")
        async with self._locks.setdefault(bucket_of(key), asyncio.Lock()):
            while True:
                try:
                    round_ = await self._round(key, fn, seen)
                except Exception as error:
                    if offered:  # an earlier round's value may still come to be committed
                        raise OutcomeUnknown(f"the change of {key} is not settled") from error
                    raise
                if round_ is not None:
                    if round_.status is Status.COMMITTED:
                        return round_.value
                    offered, seen = offered or round_.offered, max(seen, round_.seen)
                if self._clock.now() >= deadline or self._forbidden(key):
                    break
                attempt += 1
                await asyncio.sleep(self._rng.uniform(0.02, min(0.05 * 2**attempt, 0.6)))
        if offered:
            raise OutcomeUnknown(f"the change of {key} may or may not be committed")
        raise self._no_majority(key)

    def _forbidden(self, key: str) -> bool:
        """Whether so many forbid it that no other try can have a majority."""
        allowing = len(self._registries) - len(self._refusals(key))
        return allowing < majority(len(self._registries))

    def _refusals(self, key: str) -> dict[str, Refused]:
        """By registry."""
        return {name: why for (name, of), why in self._forbidding.items() if of in (key, "")}

    def _no_majority(self, key: str) -> ImError:
        """What to raise: that it is forbidden says more than that answers are lacking."""
        lacking = Unavailable(f"no majority of the registries answered for {key}")
        return next(iter(self._refusals(key).values()), lacking)

    async def _round(self, key: str, fn: Fn, seen: Ballot) -> Round | None:
        total = len(self._registries)
        if not await self._enough_stores():
            return None
        bucket = bucket_of(key)
        cache = {
            name: (revision, record)
            for name, store in self._stores.items()
            if (known := self._cache.get((name, bucket))) and known[0] == store
            for revision, record in [known[1:]]
        }
        top = max([seen, *(record.slot(key).promised for _, record in cache.values())])
        ballot = next_ballot(top, self._counter, self._proposer)
        self._counter = ballot.counter
        round_ = Round(key, ballot, self._stores, total, fn)
        ended = asyncio.Event()
        failure: list[Exception] = []

        async def carry(call: Call) -> None:
            try:
                reply = await self._call(call, bucket, key)
                calls = round_.received(reply) if reply else round_.lost(call.name)
            except Exception as error:  # fn refused: it is the caller's to hear
                failure.append(error)
                calls = []
            start(calls)

        def start(calls: list[Call]) -> None:
            for call in calls:
                self._spawn(carry(call))
            if failure or round_.status is not Status.RUNNING:
                ended.set()

        start(round_.start(cache))
        await ended.wait()
        if failure:
            raise failure[0]
        return round_

    # ------------------------------------------------------------------------------ reads

    async def read(self, key: str) -> tuple[bytes | None, Ballot]:
        """The committed value (None: never written) and its ballot. Raises Unavailable; Refused
        when the own name may not read."""
        for _ in range(2):
            records = await self._records(key)
            slot = chosen(key, records, len(self._registries))
            if slot is not None:
                return slot.value, slot.accepted
            if len(records) < majority(len(self._registries)):
                raise self._no_majority(key)
            # A change is under way. Give it the time of a round trip before taking its ballot over.
            await asyncio.sleep(self._rng.uniform(0.1, 0.3))
        try:
            value = await self._change(key, lambda current: current)
        except OutcomeUnknown as error:
            raise Unavailable(str(error)) from error
        except Refused as error:  # who may only read cannot settle it
            raise Unavailable(f"a change of {key} is under way, and not settled yet") from error
        return value, Ballot(self._counter, self._proposer)

    async def _records(self, key: str) -> list[Record]:
        """What the acceptors hold: as many as settle the key, at most a call's time."""
        if not await self._enough_stores():
            return []
        total = len(self._registries)
        calls = [Call(name, store) for name, store in self._stores.items()]
        pending = {asyncio.create_task(self._call(call, bucket_of(key), key)) for call in calls}
        records: list[Record] = []
        try:
            while pending:
                enough = len(records) >= majority(total)
                done, pending = await asyncio.wait(
                    pending,
                    timeout=0.25 if enough else None,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                records += [
                    reply.record
                    for task in done
                    if (reply := task.result()) and reply.record and reply.record.joined
                ]
                if not done or chosen(key, records, total):
                    break
        finally:
            for task in pending:
                task.cancel()
        return records

    # ------------------------------------------------------------------------------ stores

    async def _enough_stores(self) -> bool:
        """Whether the store ids of a majority are known; the others are looked for meanwhile."""
        deadline = self._clock.now() + CALL_S
        needed = majority(len(self._registries))
        for name in sorted(self._registries.keys() - self._stores.keys() - self._finding):
            self._finding.add(name)
            self._spawn(self._find(name))
        while len(self._stores) < needed and self._finding:
            left = deadline - self._clock.now()
            if left <= 0:
                break
            self._found.clear()
            try:
                await asyncio.wait_for(self._found.wait(), left)
            except TimeoutError:
                break
        return len(self._stores) >= needed

    async def _find(self, name: str) -> None:
        try:
            async with asyncio.timeout(CALL_S):
                self._stores[name] = (await self._registries[name].store_id()).hex()
            self._note(name, "", None)
        except (ImError, TimeoutError) as error:
            self._note(name, "", error)
        finally:
            self._finding.discard(name)
            self._found.set()

    async def _call(self, call: Call, bucket: int, of: str = "") -> Reply | None:
        """``of``: the key for whose sake it is called. None: no answer. A missing record means that
        the store there is another one now."""
        registry, key = self._registries[call.name], record_key(call.store, bucket)
        try:
            async with asyncio.timeout(CALL_S):
                if call.record is None:
                    swapped, current = False, await registry.get(key)
                else:
                    swapped, current = await registry.compare_and_swap(
                        key, call.expected, encode(call.record)
                    )
            reply = _reply(call, swapped, current)
            self._note(call.name, of, None)
        except (ImError, TimeoutError) as error:
            self._note(call.name, of, error)
            self._cache.pop((call.name, bucket), None)
            return None
        except ValueError:
            log.error("the registry of %s holds rubbish where CASPaxos keeps its state", call.name)
            return None
        if reply.record is None:
            self._cache.pop((call.name, bucket), None)
            if self._stores.get(call.name) == call.store:
                del self._stores[call.name]
        else:
            self._cache[call.name, bucket] = (call.store, reply.revision, reply.record)
        return reply

    def _note(self, name: str, of: str, error: Exception | None) -> None:
        if isinstance(error, Refused) and error.code is Code.FORBIDDEN:
            self._forbidding[name, of] = error
        else:
            self._forbidding.pop((name, of), None)

    def _spawn(self, work: object) -> None:
        task: asyncio.Task[None] = asyncio.create_task(work)  # type: ignore[arg-type]
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    # ------------------------------------------------------------------------------- joining

    async def ensure_member(self) -> None:
        """Returns once the own registry's store is an acceptor. A blank one needs an answer from
        *all* others, so this may wait for as long as one of them is away. Run it in the process
        that owns the store, and there only."""
        own = self._registries[self._own]
        warned = ""
        while True:
            try:
                reason = await self._join_all(own)
            except (ImError, TimeoutError) as error:
                reason = f"not every registry answers ({error or 'time-out'})"
            if not reason:
                self.refused_join = ""
                return
            if reason != warned:
                log.warning("the blank registry of %s abstains: %s", self._own, reason)
                warned = reason
            await asyncio.sleep(_RETRY_S)

    async def _join_all(self, own: Registry) -> str:
        """Empty when every bucket is joined, else why not."""
        store = (await own.store_id()).hex()
        blank = [
            bucket
            for bucket in range(BUCKETS)
            if not (await self._own_record(own, store, bucket))[1].joined
        ]
        if not blank:
            return ""
        names = [name for name in self._registries if name != self._own]
        async with asyncio.timeout(CALL_S):
            ids = await asyncio.gather(*(self._registries[name].store_id() for name in names))
        stores = {name: id_.hex() for name, id_ in zip(names, ids, strict=True)}
        reasons = await asyncio.gather(
            *(self._join(own, store, stores, bucket) for bucket in blank)
        )
        return next((reason for reason in reasons if reason), "")

    async def _join(self, own: Registry, store: str, stores: dict[str, str], bucket: int) -> str:
        joining = Joining(self._own, store, stores)
        await asyncio.gather(*(self._read_for(joining, call, bucket) for call in joining.start()))
        if not joining.complete:
            return "not every registry answers, or one has not started its own part yet"
        if other := joining.blocked_by():
            self.refused_join = (
                f"the registries of {self._own} and {other} were both lost; what only they held "
                "may be gone, so neither votes before an operator restores one of them"
            )
            return self.refused_join
        revision, current = await self._own_record(own, store, bucket)
        joined = joining.joined(current)
        if joined is None:
            return "another registry has changed its store meanwhile"
        swapped, _ = await own.compare_and_swap(record_key(store, bucket), revision, encode(joined))
        return "" if swapped else "another registry joins at the same time"

    async def _read_for(self, joining: Joining, call: Call, bucket: int) -> None:
        calls = [call]
        while calls:
            reply = await self._call(calls.pop(), bucket)
            if reply is not None:
                calls = joining.received(reply)

    async def _own_record(self, own: Registry, store: str, bucket: int) -> tuple[int, Record]:
        """The own store's record, made when there is none (by its owner alone, invariant 1)."""
        key = record_key(store, bucket)
        current = await own.get(key)
        if current is None:
            blank = Record(members={self._own: Member(store)})
            _, current = await own.compare_and_swap(key, 0, encode(blank))
        if current is None:
            raise Unavailable("the own registry does not keep what is written to it")
        return current.mod_revision, decode(current.value)


def _reply(call: Call, swapped: bool, current: Versioned | None) -> Reply:
    if current is None or not current.exists:
        return Reply(call.name, False, 0, None)
    return Reply(call.name, swapped, current.mod_revision, decode(current.value))
