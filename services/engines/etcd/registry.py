"""Registry of services.ports on etcd: one key prefix of a cluster that others may use too.

Below the prefix stand ``store`` (which store this is) and ``k/`` (the registry's keys).

*Store id.* A random value, written once by compare-and-swap, hashed with the cluster's id. A blank
etcd gets another one, and so does a backup that was restored into a new cluster (etcdutl's restore
with a new --initial-cluster-token). A data folder that was copied back under the same cluster
cannot be told apart: never do that, wipe instead.

*Leases.* etcd counts whole seconds, rounded up here, and grants at least about two (one and a half
election time-outs). It looks for ended ones every half second, so keys outlive their lease by up to
a second. A restarted etcd gives every lease its full time again.
"""

from __future__ import annotations

import contextlib
import hashlib
import math
import secrets
from collections.abc import AsyncIterator

from imcore.errors import Code, DiskFull, ImError, OutcomeUnknown, Refused, Unavailable
from services.engines.etcd import etcd_pb2 as pb
from services.engines.etcd.client import EtcdClient, EtcdSettings, RenewedSettings, Stubs
from services.ports import Versioned, WatchEvents


class EtcdRegistry:
    """The caller closes it. ``name`` says in errors whose registry it is."""

    def __init__(
        self, settings: EtcdSettings, name: str, renewed: RenewedSettings = lambda: None
    ) -> None:
        self._client = EtcdClient(settings, name, renewed=renewed)
        self._name = name
        prefix = settings.prefix.encode()
        self._store_key = prefix + b"store"
        self._keys = prefix + b"k/"

    async def close(self) -> None:
        await self._client.close()

    async def version(self) -> str:
        reply = await self._client.read(lambda on: on.maintenance.Status, pb.StatusRequest())
        return str(reply.version)

    # --------------------------------------------------------------------------- reads

    async def store_id(self) -> bytes:
        """Never from memory: the etcd behind the endpoints may have been wiped meanwhile."""
        request = pb.RangeRequest(key=self._store_key)
        found = await self._client.read(_range, request)
        if not found.kvs:
            try:
                await self._client.write(
                    _txn,
                    pb.TxnRequest(
                        compare=[_unchanged(self._store_key, 0)],
                        success=[_put_op(self._store_key, secrets.token_bytes(16), 0)],
                    ),
                )
            except OutcomeUnknown as error:  # to the caller this is a read
                raise Unavailable(str(error)) from error
            found = await self._client.read(_range, request)
        if not found.kvs:
            raise Unavailable(f"{self._name}'s etcd does not keep what is written to it")
        cluster = found.header.cluster_id.to_bytes(8, "big")
        return hashlib.sha256(b"imctl registry\0" + cluster + found.kvs[0].value).digest()[:16]

    async def get(self, key: bytes) -> Versioned | None:
        reply = await self._client.read(_range, pb.RangeRequest(key=self._keys + key))
        return self._versioned(reply.kvs[0]) if reply.kvs else None

    async def range(self, prefix: bytes, *more: bytes) -> list[Versioned]:
        asked = [pb.RequestOp(request_range=self._under(each)) for each in (prefix, *more)]
        reply = await self._client.read(_txn, pb.TxnRequest(success=asked))
        return [self._versioned(kv) for each in reply.responses for kv in each.response_range.kvs]

    def _under(self, prefix: bytes) -> pb.RangeRequest:
        start = self._keys + prefix
        return pb.RangeRequest(key=start, range_end=_after(start))

    async def _read_all(self, prefix: bytes) -> WatchEvents:
        reply = await self._client.read(_range, self._under(prefix))
        # etcd answers in the order of the keys.
        return WatchEvents(reply.header.revision, [self._versioned(kv) for kv in reply.kvs])

    async def watch(self, prefix: bytes, from_revision: int = 0) -> AsyncIterator[WatchEvents]:
        start, resumed, full = self._keys + prefix, from_revision != 0, from_revision == 0
        if resumed:
            # etcd would wait for a revision of the future in silence; a wiped one has only past.
            head = await self._client.read(_range, pb.RangeRequest(key=self._store_key))
            full = from_revision > head.header.revision + 1
        while True:
            if full:
                found = await self._read_all(prefix)
                yield found._replace(compacted=resumed)
                from_revision = found.revision + 1
            create = pb.WatchCreateRequest(
                key=start, range_end=_after(start), start_revision=from_revision
            )
            async with contextlib.aclosing(self._client.watch(create)) as responses:
                async for response in responses:
                    if response.compact_revision:
                        break
                    # Not the header's: etcd may split what a watch has to catch up on, and says
                    # where the store stands, not where the batch ends.
                    revision = response.events[-1].kv.mod_revision
                    yield WatchEvents(revision, [self._event(one) for one in response.events])
                    from_revision = revision + 1
            full = resumed = True

    # -------------------------------------------------------------------------- writes

    async def compare_and_swap(
        self, key: bytes, expected_mod_revision: int, value: bytes | None, lease: int = 0
    ) -> tuple[bool, Versioned | None]:
        full_key = self._keys + key
        request = pb.TxnRequest(
            compare=[_unchanged(full_key, expected_mod_revision)],
            success=[_put_op(full_key, value, lease)],
            failure=[pb.RequestOp(request_range=pb.RangeRequest(key=full_key))],
        )
        try:
            reply = await self._client.write(_txn, request)
        except DiskFull as error:
            current = await self._look(key, error)
            if (current.mod_revision if current else 0) == expected_mod_revision:
                raise  # nobody has written it, so this did not either
            raise OutcomeUnknown(str(error)) from error
        if not reply.succeeded:
            kvs = reply.responses[0].response_range.kvs
            return False, self._versioned(kvs[0]) if kvs else None
        if value is None:
            return True, None
        return True, Versioned(key, value, reply.header.revision, lease)

    async def put(self, key: bytes, value: bytes | None, lease: int = 0) -> None:
        full_key = self._keys + key
        if value is None:
            await self._client.write(_delete, pb.DeleteRangeRequest(key=full_key))
            return
        request = pb.PutRequest(key=full_key, value=value, lease=lease)
        try:
            await self._client.write(lambda on: on.kv.Put, request)
        except DiskFull as error:
            current = await self._look(key, error)
            if current is None or (current.value, current.lease) != (value, lease):
                raise
            raise OutcomeUnknown(str(error)) from error

    async def _look(self, key: bytes, error: DiskFull) -> Versioned | None:
        """What became of a write that etcd answered with "no space". It says so both before it
        takes a write and, where two together go over its quota, *after* it has done one."""
        try:
            return await self.get(key)
        except ImError:
            raise OutcomeUnknown(str(error)) from error

    async def grant_lease(self, ttl_ms: int) -> int:
        if ttl_ms <= 0:
            raise ValueError(f"a lease lasts at least 1 ms, not {ttl_ms}")
        # Random, so that the holder of one that ended with its store never keeps another alive.
        request = pb.LeaseGrantRequest(TTL=math.ceil(ttl_ms / 1000), ID=secrets.randbits(62) + 1)
        return int((await self._client.write(lambda on: on.lease.LeaseGrant, request)).ID)

    async def keep_alive(self, lease: int) -> bool:
        return await self._client.keep_alive(lease) > 0

    async def revoke_lease(self, lease: int) -> None:
        try:
            await self._client.write(
                lambda on: on.lease.LeaseRevoke, pb.LeaseRevokeRequest(ID=lease)
            )
        except Refused as error:
            if error.code is not Code.NOT_FOUND:
                raise

    # --------------------------------------------------------------------------- words

    def _versioned(self, kv: pb.KeyValue, exists: bool = True) -> Versioned:
        key = kv.key.removeprefix(self._keys)
        return Versioned(key, kv.value, kv.mod_revision, kv.lease, exists)

    def _event(self, event: pb.Event) -> Versioned:
        return self._versioned(event.kv, event.type == pb.Event.PUT)


def _range(on: Stubs) -> object:
    return on.kv.Range


def _txn(on: Stubs) -> object:
    return on.kv.Txn


def _delete(on: Stubs) -> object:
    return on.kv.DeleteRange


def _unchanged(key: bytes, mod_revision: int) -> pb.Compare:
    """0: a key that does not exist."""
    return pb.Compare(
        result=pb.Compare.EQUAL, target=pb.Compare.MOD, key=key, mod_revision=mod_revision
    )


def _put_op(key: bytes, value: bytes | None, lease: int) -> pb.RequestOp:
    if value is None:
        return pb.RequestOp(request_delete_range=pb.DeleteRangeRequest(key=key))
    return pb.RequestOp(request_put=pb.PutRequest(key=key, value=value, lease=lease))


def _after(prefix: bytes) -> bytes:
    """The first key behind all that begin so. A prefix here never consists of 0xff alone."""
    head = prefix.rstrip(b"\xff")
    return head[:-1] + bytes([head[-1] + 1])
