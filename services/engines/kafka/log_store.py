"""LogStore of services.ports on one IDC's Kafka cluster.

    P.log.INCARNATION           the own log (services.engines.kafka.log)
    IDC.P.log.INCARNATION       MirrorMaker's copy of another IDC's
    P.relay.IDC.INCARNATION     what this IDC fetched itself of it
    P.meta                      log id, boot counts, own origin, where logs start, what was cut

The meta topic fences whole processes, the epochs in the logs fence sequencers: an older process of
this IDC may still append (and acks nothing that a reader drops), but it cannot note anything down.

Durable means acks=all: in the memory of all in-sync replicas, and on the disk of each only with
``durability: flush``. That is why ``fsynced`` is False otherwise: all brokers of an IDC that lose
their power at once may lose what they acked, and rule 6 then counts silent peers as holding more.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Iterable
from functools import partial
from typing import Any

from imcore.errors import BadInput, ImError, Unavailable
from imcore.runtime import Random
from imcore.words import Origin, parse_origin
from services.engines.kafka import admin
from services.engines.kafka.cluster import Cluster
from services.engines.kafka.index import STEP_BYTES, parse_hint
from services.engines.kafka.log import KafkaLog, Kept
from services.engines.kafka.meta import STORE, Meta
from services.engines.kafka.settings import FLUSH, KafkaSettings, meta_topic, topics_of
from services.engines.kafka.tail import Tail
from services.engines.kafka.union import Cuts, parse_cuts
from services.ports import Log

log = logging.getLogger("im.log")

_FORMAT = 1
LOOK_S = 600.0  # between looks at topics' settings
LOOK_AFTER_DIFFERENCES_S = 60.0  # while somebody may be putting them right
NOTE_S = 20.0  # between notes of how far the logs have come
_NOTE_BYTES = 4 << 20  # of a partition, before it is worth one


class KafkaLogStore:
    """Made by ``open``."""

    def __init__(
        self,
        cluster: Cluster,
        meta: Meta,
        idc: str,
        partitions: int,
        filled_from_outside: bool,
        rng: Random,
        step_bytes: int,
    ) -> None:
        self._cluster = cluster
        self._meta = meta
        self._idc = idc
        self._partitions = partitions
        self._rng = rng
        self._step_bytes = step_bytes
        self._tail = Tail(cluster)
        self._logs: dict[Origin, KafkaLog] = {}
        self._noted: dict[tuple[Origin, int], int] = {}  # sizes
        self._opening = asyncio.Lock()
        self._closed = False
        self._tasks: list[asyncio.Task[None]] = []
        self._topics: dict[str, admin.Topic] = {}  # as they are wanted; those that were there
        self._differences: dict[str, list[admin.Difference]] = {}
        self.filled_from_outside = filled_from_outside
        self.durability = cluster.settings.durability
        self.fsynced = self.durability == FLUSH
        self.log_id = b""
        self.boot_count = 0
        self.confirmed_boot_count = 0
        self.clean = True

    @classmethod
    async def open(
        cls,
        settings: KafkaSettings,
        idc: str,
        partitions: int,
        rng: Random,
        filled_from_outside: bool = False,
        step_bytes: int = STEP_BYTES,
    ) -> KafkaLogStore:
        """Raises Unavailable, NotTrusted, OutcomeUnknown, BadInput when files cannot be read or the
        store does not fit the region."""
        cluster = Cluster(settings, idc)
        meta = Meta(cluster)
        store = cls(cluster, meta, idc, partitions, filled_from_outside, rng, step_bytes)
        try:
            await store._start()
        except BaseException:
            await store._release()
            raise
        store._tasks = [asyncio.ensure_future(on()) for on in (store._note_on, store._look_on)]
        return store

    async def _start(self) -> None:
        name = meta_topic(self._cluster.settings.prefix)
        await self._ensure(admin.meta(name, self._cluster.settings))
        await self._meta.open()
        stored = self._meta.values.get(STORE)
        if stored is None:
            stored = {
                "format": _FORMAT,
                "idc": self._idc,
                "log_id": self._rng.randbytes(16).hex(),
                "partitions": self._partitions,
                "confirmed": 0,
                "pending": 0,
                "own": None,
                "clean": True,
            }
        self._check(stored, name)
        self.log_id = bytes.fromhex(stored["log_id"])
        self.confirmed_boot_count = stored["confirmed"]
        self.boot_count = stored["pending"] + 1
        self.clean = stored["clean"]
        await self._put_store({**stored, "pending": self.boot_count})
        self._meta.own(self.boot_count)
        for key in list(self._meta.values):
            if key.startswith("log/"):
                await self._load(parse_origin(key.removeprefix("log/")))
        for held in self._logs.values():
            held.follow()

    def _check(self, stored: dict[str, Any], name: str) -> None:
        where = f"the topic {name} of {self._cluster}"
        if stored["format"] != _FORMAT:
            raise BadInput(f"{where} has format {stored['format']}, this program reads {_FORMAT}")
        if stored["idc"] != self._idc:
            raise BadInput(
                f"{where} is the log store of {stored['idc']}: give each IDC a cluster of its own, "
                "or another topic_prefix"
            )
        if stored["partitions"] != self._partitions:
            raise BadInput(
                f"{where} has {stored['partitions']} partitions, the region file says "
                f"{self._partitions}: the number is fixed for the life of a region"
            )

    # ------------------------------------------------------------------------- what is here

    @property
    def own_origin(self) -> Origin | None:
        """The origin whose log was last opened as the own one."""
        own = self._meta.values.get(STORE, {}).get("own")
        return parse_origin(own) if own else None

    def own(self) -> KafkaLog | None:
        own = self.own_origin
        return self._logs.get(own) if own else None

    def held(self) -> dict[Origin, Log]:
        return {**self._logs}

    @property
    def differences(self) -> list[str]:
        """How topics differ from what the region file wants of them."""
        return [str(it) for found in self._differences.values() for it in found]

    def alarms(self) -> list[str]:
        return [*([self._tail.problem] if self._tail.problem else []), *self.differences]

    # ------------------------------------------------------------------------------ opening

    async def open_own(self, origin: Origin) -> KafkaLog:
        own = self.own_origin
        if own is not None and own.idc == origin.idc and own > origin:
            raise ValueError(f"{origin} is over: this store is at {own}")
        async with self._opening:
            opened = await self._load(origin)
            await opened.become_own()
            if opened.lost and self.clean:
                self.clean = False
                await self._put_store({"clean": False})
            if own != origin:
                await self._put_store({"own": str(origin)})
            for held in self._logs.values():
                if held is not opened and held.appendable:
                    held.become_copy()
        return opened

    async def open_copy(self, origin: Origin) -> KafkaLog:
        if origin == self.own_origin:
            raise ValueError(f"{origin} is this store's own log")
        async with self._opening:
            known = self._logs.get(origin)
            opened = await self._load(origin)
            if known is None:
                opened.follow()
            return opened

    async def _load(self, origin: Origin) -> KafkaLog:
        if self._closed:
            raise Unavailable(f"the log store of {self._idc} is closed")
        opened = self._logs.get(origin)
        if opened is not None:
            return opened
        settings = self._cluster.settings
        topics = topics_of(settings.prefix, self._idc, origin)
        if origin.idc == self._idc or self.filled_from_outside:
            await self._ensure(admin.log_topic(topics[0], self._partitions, settings))
        key = f"log/{origin}"
        if key not in self._meta.values:
            await self._meta.put({key: {"topics": topics}})
        opened = KafkaLog(
            origin,
            topics,
            self._partitions,
            self._cluster,
            self._tail,
            {n: self._kept(origin, n) for n in range(self._partitions)},
            partial(self._keep, origin),
            partial(self._ensure, admin.log_topic(topics[1], self._partitions, settings)),
            self._step_bytes,
        )
        await opened.open()
        self._logs[origin] = opened
        return opened

    async def _ensure(self, topic: admin.Topic) -> None:
        found = await admin.ensure(self._cluster, [topic])
        self._topics[topic.name] = topic
        self._found([topic], found)

    def _found(self, topics: Iterable[admin.Topic], found: Iterable[admin.Difference]) -> None:
        """How these topics, and no others, differ now."""
        said = set(self.differences)
        for topic in topics:
            self._differences[topic.name] = [it for it in found if it.topic == topic.name]
        now = set(self.differences)
        for difference in sorted(now - said):
            log.warning("%s (nothing was changed)", difference)
        for difference in sorted(said - now):
            log.warning("no longer so: %s", difference)

    async def _look_on(self) -> None:
        """Operators put topics right, and change them, while the IDC runs."""
        while True:
            await asyncio.sleep(LOOK_AFTER_DIFFERENCES_S if self.differences else LOOK_S)
            topics = list(self._topics.values())
            try:
                there = await admin.describe(self._cluster, [topic.name for topic in topics])
            except ImError as error:
                log.warning("the topics' settings could not be looked at: %s", error)
            else:
                self._found(topics, admin.plan(topics, there))

    # ---------------------------------------------------------------------------- the notes

    def _kept(self, origin: Origin, partition: int) -> Kept:
        document = self._meta.values.get(f"kept/{origin}/{partition}")
        if document is None:
            return Kept([], Cuts())
        return Kept([parse_hint(row) for row in document["hints"]], parse_cuts(document["cuts"]))

    async def _keep(self, origin: Origin, partition: int, kept: Kept) -> None:
        await self._meta.put(_note(origin, partition, kept))
        self._noted[origin, partition] = kept.hints[-1].size

    async def _put_store(self, changes: dict[str, Any]) -> None:
        def changed() -> dict[str, Any]:
            return {STORE: {**self._meta.values.get(STORE, {}), **changes}}

        await self._meta.put_made(changed)

    async def _note_on(self) -> None:
        while True:
            await asyncio.sleep(NOTE_S)
            try:
                await self._note_down(_NOTE_BYTES)
            except ImError as error:
                log.warning("how far the logs have come could not be noted down: %s", error)

    async def _note_down(self, least_bytes: int) -> None:
        """How far the logs have come: where a later opening begins to read."""
        sizes: dict[tuple[Origin, int], int] = {}

        def notes() -> dict[str, Any]:
            found: dict[str, Any] = {}
            for origin, held in self._logs.items():
                for partition in range(self._partitions):
                    at, size = (origin, partition), held.size(partition)
                    # Less than what was noted down: it has lost its end since.
                    if not 0 <= size - self._noted.get(at, 0) < least_bytes:
                        found |= _note(origin, partition, held.kept(partition))
                        sizes[at] = size
            return found

        # Made when its turn has come: what a cut before it left is never put over that cut.
        await self._meta.put_made(notes)
        self._noted |= sizes

    async def confirm_boot(self) -> None:
        await self._put_store({"confirmed": self.boot_count, "clean": True})
        self.confirmed_boot_count = self.boot_count
        self.clean = True

    async def renew(self) -> None:
        log_id = self._rng.randbytes(16)
        await self._put_store({"log_id": log_id.hex()})
        self.log_id = log_id

    async def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        for held in self._logs.values():
            await held.close()
        try:
            await self._note_down(1)
        except ImError as error:
            log.warning("the ends of the logs could not be noted down: %s", error)
        finally:
            await self._release()

    async def _release(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._tail.close()
        await self._cluster.close()


def _note(origin: Origin, partition: int, kept: Kept) -> dict[str, Any]:
    hints = [hint.dump() for hint in kept.hints]
    return {f"kept/{origin}/{partition}": {"hints": hints, "cuts": kept.cuts.dump()}}
