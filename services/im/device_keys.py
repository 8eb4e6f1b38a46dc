"""Keys of devices, for end-to-end encryption: published by a device, asked for by those who write
to its user. And the word by which a direct conversation is encrypted from then on.

A device's keys are one row, and the later word of that device counts. There are no one-time keys:
two IDCs that do not hear each other would hand one of them out twice, and whoever asks often would
use them up. docs/encryption.md says what that costs. What a server could forge the devices check:
signatures, and that a device's identity stays what it was.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from imcore.changes import keys_last
from imcore.convert import stamp_of
from imcore.errors import Code, Refused, Unavailable
from imcore.levels import ENCRYPTION
from imcore.limits import KEY_DEVICES_MAX
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import direct_conversation, valid_id
from services.im import friends, groups, keys, pair
from services.im.conversation import Conversation
from services.im.partition import Partition
from services.ports import Session

if TYPE_CHECKING:
    from services.im.server import ImServer

_KEY_BYTES = 32
_SIGNATURE_BYTES = 64
_MEMBERS = 20  # of a page: with all their devices they fit an answer
_ROWS = 200  # read at once; those of devices that are gone stand there too, for good


async def publish(server: ImServer, session: Session, request: pb.PublishKeys) -> pb.Response:
    """Answered like a setting of a conversation. Raises Refused, Unavailable."""
    server.need_level(ENCRYPTION)
    given = request.keys
    composed = server.keys.seen(stamp_of(request.composed))
    _check(session, given, composed)
    word = oplog.DeviceKeysOp(keys=given)
    word.order.hlc, word.order.device = composed, session.device
    word.order.number = request.number
    partition = server.partition(session.uid)
    rows = await _rows(server, partition, session.uid)
    if not given.identity and given.device not in rows:
        raise Refused(Code.NOT_FOUND, f"{given.device!r} has no keys here (yet)")
    row = rows.get(given.device, oplog.DeviceKeysOp())
    if row.keys != given and keys_last(row, word):
        live = [device for device, held in rows.items() if held.keys.identity]
        if given.identity and given.device not in live and len(live) >= KEY_DEVICES_MAX:
            message = f"a user has at most {KEY_DEVICES_MAX} devices with keys; one must go first"
            raise Refused(Code.TOO_LARGE, message)
        seen = max(session.seen_hlc, composed)
        op = partition.sequencer.plain("", server.clock.wall_ms(), seen)
        op.level = ENCRYPTION
        op.device_keys.CopyFrom(word)
        lsn = (await partition.append(op)).lsn
    else:  # so already; what made it so may still be held here only
        lsn = partition.applier.lsn(server.origin)
    await groups.settled(server, session, partition, lsn)
    return pb.Response(ok=pb.Ok())


def _check(session: Session, given: pb.DeviceKeys, composed: int) -> None:
    """Raises Refused. Of the right size is enough: who is to trust them looks at the rest."""
    if given.uid != session.uid or not valid_id(given.device) or not composed:
        message = "keys are those of a device of one's own, with a stamp that it had seen"
        raise Refused(Code.BAD_REQUEST, message)
    sizes = [len(key) for key in (given.identity, given.signing, given.prekey, given.signature)]
    gone = not any(sizes)
    if not gone and sizes != [_KEY_BYTES] * 3 + [_SIGNATURE_BYTES]:
        raise Refused(Code.BAD_REQUEST, "keys have 32 bytes each, and a signature of 64")
    if gone == (given.device == session.device):
        raise Refused(Code.BAD_REQUEST, "a device publishes its keys, or takes another's away")


async def _rows(server: ImServer, partition: Partition, uid: str) -> dict[str, oplog.DeviceKeysOp]:
    """By device, those that are gone too. Raises Unavailable: a device that is missing only since
    the partition is folded again would not be written to."""
    prefix, begun = keys.device_keys(partition.number, uid, ""), partition.applier.begun
    end = keys.prefix_end(prefix)
    found = last = await server.kv.scan(prefix, end, _ROWS)
    while len(last) == _ROWS:
        last = await server.kv.scan(last[-1][0] + b"\0", end, _ROWS)
        found = [*found, *last]
    if partition.conversations.withheld or begun != partition.applier.begun:
        raise Unavailable("these keys are being folded again; ask again")
    return {key[len(prefix) :].decode(): oplog.DeviceKeysOp.FromString(row) for key, row in found}


async def page(server: ImServer, session: Session, request: pb.DeviceKeysOf) -> pb.Response:
    """Raises Refused, Unavailable."""
    _, conversation = await server.readable(session, request.conversation)
    answer = pb.DeviceKeysOk(encrypted=conversation.encrypted)
    members = [uid for uid in conversation.members() if uid > request.after]
    few = len(conversation.members()) <= server.policy.push_group_members_max
    if answer.encrypted or (request.wanted and few):
        if not server.whole:  # a device whose keys are missing only here would not be written to
            raise Unavailable("this IDC does not have again what it had; ask again")
        for uid in members[:_MEMBERS]:
            rows = await _rows(server, server.partition(uid), uid)
            live = [row.keys for row in rows.values() if row.keys.identity]
            answer.devices.extend(live[:KEY_DEVICES_MAX])
        if len(members) > _MEMBERS:
            answer.next = members[_MEMBERS - 1]
    return pb.Response(device_keys_ok=answer)


async def switch_on(server: ImServer, session: Session, request: pb.SetConversation) -> pb.Response:
    """What two users say to each other is encrypted from now on; by either, and for good. Raises
    Refused, Unavailable."""
    server.need_level(ENCRYPTION)
    name, both = request.conversation, pair.pair_of(request.conversation)
    partition, conversation = await server.readable(session, name)
    composed = server.keys.seen(stamp_of(request.composed))
    if both is None or name != direct_conversation(*both):
        raise Refused(Code.BAD_REQUEST, "a group is encrypted when it is created, or never")
    if not composed or not request.encrypted:
        raise Refused(Code.BAD_REQUEST, "encryption is switched on, with a stamp, and never off")
    if (blocked := friends.refusal(conversation, session.uid)) is not None:
        raise blocked
    if conversation.encrypted:
        lsn = partition.applier.lsn(server.origin)
    else:
        word = oplog.FriendOp(actor=session.uid, encrypted=True)
        word.order.hlc, word.order.device = composed, session.device
        word.order.number = request.number
        seen = max(session.seen_hlc, composed)
        op = partition.sequencer.plain(name, server.clock.wall_ms(), seen)
        op.level = ENCRYPTION
        op.friend.CopyFrom(word)
        lsn = (await partition.append(op)).lsn
    await groups.settled(server, session, partition, lsn)
    return pb.Response(ok=pb.Ok())


def refusal(conversation: Conversation, encrypted: bool) -> Refused | None:
    """Why content may not come in there. Encrypted content may in any: another IDC may have heard
    of the switch already."""
    if encrypted or not conversation.encrypted:
        return None
    return Refused(Code.ENCRYPTED_ONLY, f"{conversation.id} is encrypted: plain content is refused")
