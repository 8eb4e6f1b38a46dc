"""A user's own devices, and kicks: the op that ends sessions of devices, wherever they are."""

from __future__ import annotations

from typing import TYPE_CHECKING

from imcore.errors import Code, Refused, Unavailable
from imcore.proto import client_pb2 as pb
from imcore.words import valid_id
from services.ports import Session

if TYPE_CHECKING:
    from services.im.server import ImServer


async def page(server: ImServer, session: Session, request: pb.Devices) -> pb.Response:
    return pb.Response(devices_ok=pb.DevicesOk(devices=server.live.devices(session.uid)))


async def kick(server: ImServer, session: Session, request: pb.Kick) -> pb.Response:
    """Raises Refused, Unavailable."""
    if request.device == session.device:
        raise Refused(Code.BAD_REQUEST, "a device ends its own session by `bye`")
    kept = "" if request.device else session.device
    await end(server, session.uid, request.device, kept, session.seen_hlc)
    return pb.Response(ok=pb.Ok())


async def end(
    server: ImServer, uid: str, device: str = "", kept: str = "", seen_hlc: int = 0
) -> None:
    """Returns once another IDC holds it, so that it comes to every IDC. ``device`` empty: all but
    ``kept``. Raises Refused, Unavailable: asking again is harmless."""
    if not valid_id(uid) or (device and not valid_id(device)):
        raise Refused(Code.BAD_REQUEST, "a kick names a uid, and a device or none")
    partition = server.partition(uid)
    op = partition.sequencer.plain("", server.clock.wall_ms(), seen_hlc)
    op.kick.uid, op.kick.device, op.kick.kept = uid, device, kept
    record = await partition.append(op)
    deadline = server.clock.now() + server.policy.replicated_timeout_ms / 1000
    if not await server.held_elsewhere(partition, record.lsn, deadline):
        raise Unavailable("no other IDC holds the kick yet; ask again", 500)
