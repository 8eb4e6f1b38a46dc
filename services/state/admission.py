"""Who a Connect is from, and whether it may have the device's session (rule 16). No I/O."""

from __future__ import annotations

from collections.abc import Callable

from imcore import tokens
from imcore.attest import RegionKeys
from imcore.convert import origin_pb, stamp_of
from imcore.proto import client_pb2 as pb
from imcore.runtime import Clock
from imcore.words import Origin
from services.state import resume
from services.state.resume import Resume
from services.state.session import Record
from services.state.table import Address

RESUME_MS_MIN = 60_000


class Admission:
    """``shard_of(ticket, uid)`` reads the placement ticket of an ipconf answer; ``secret(n)``
    gives n bytes that nobody can guess."""

    def __init__(
        self,
        keys: RegionKeys,
        clock: Clock,
        shard_of: Callable[[bytes, str], str],
        secret: Callable[[int], bytes],
    ) -> None:
        self._keys = keys
        self._clock = clock
        self._shard_of = shard_of
        self._secret = secret

    def judge(
        self, address: Address, request: pb.Request, own: Origin
    ) -> tuple[Record, Resume | None]:
        """A new session's record, and the resume token that it may use. A bad resume token costs
        the resume, a bad placement ticket the shard, never the connection. Raises Refused."""
        connect = request.connect
        now_ms = self._clock.wall_ms()
        claims = tokens.verify(self._keys, connect.token.decode("ascii", "replace"), now_ms)
        gateway, connection = address
        record = Record(
            self._secret(8).hex(), claims.uid, claims.device, connect.connection_epoch,
            gateway, connection, kind=claims.kind,
        )  # fmt: skip
        record.shard = self._shard_of(connect.placement, claims.uid)
        record.seen_hlc = self.seen(request)
        record.unpacks = pb.PACKING_ZLIB in connect.packings
        record.pull_only = connect.mode == pb.CONNECT_MODE_PULL_ONLY
        token = resume.open_token(self._keys, connect.resume_token, now_ms)
        if token is None or (token.uid, token.device) != (record.uid, record.device):
            return record, None
        if token.idc != own.idc:
            origin = origin_pb(Origin(token.idc, token.incarnation))
            for partition, lsn in token.lsns.items():
                connect.moved_from.add(origin=origin, partition=int(partition), lsn=lsn)
        return record, token

    def seen(self, request: pb.Request) -> int:
        return self._keys.seen(stamp_of(request.seen)) if request.HasField("seen") else 0

    def resume_token(self, record: Record, own: Origin, grace_ms: int) -> bytes:
        return resume.seal(
            self._keys,
            Resume(
                record.id,
                record.uid,
                record.device,
                record.connection_epoch,
                self._clock.wall_ms() + max(grace_ms, RESUME_MS_MIN),
                own.idc,
                own.incarnation,
                {str(partition): lsn for partition, lsn in record.lsns.items()},
            ),
        )


def goes_on(record: Record, former: Record, token: Resume | None) -> bool:
    """Whether the former session of the device goes on under the new connection; then it takes
    over what that was owed and waits for."""
    if token is None or token.session != former.id:
        return False
    record.id = former.id
    record.owed = former.owed
    record.lsns = former.lsns
    record.unreplicated = former.unreplicated
    record.seen_hlc = max(record.seen_hlc, former.seen_hlc)
    return True
