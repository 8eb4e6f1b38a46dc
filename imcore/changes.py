"""What edits, recalls and reactions make of a message, and words on a setting or a key of that: the
same fold in every IDC and device. Pure.

The last edit counts and the last word of each user on each reaction; a recall is for good, whatever
comes before or after it. Which is the last one says the order that its device gave it (``Order``),
so neither the order in which changes come nor how often one comes matters.
"""

from __future__ import annotations

from bisect import bisect_left

from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog

_Rank = tuple[int, str, int, bytes]


def _rank(order: pb.Order, value: bytes) -> _Rank:
    """A device may give two changes one order, against the rule: then the value decides."""
    return order.hlc, order.device, order.number, value


def merge(changes: pb.Changes, change: pb.ChangeEntry) -> bool:
    """Fold one change; whether that changed anything."""
    what = change.WhichOneof("what")
    if what == "recall":
        if changes.recalled:
            return False
        changes.recalled = True
        changes.ClearField("edit")
        return True
    if what == "edit":
        if changes.recalled:
            return False
        edit = changes.edit
        rank = _rank(change.order, change.edit + bytes([change.encrypted]))
        held = _rank(edit.order, edit.content + bytes([edit.encrypted]))
        if changes.HasField("edit") and held >= rank:
            return False
        edit.content, edit.encrypted = change.edit, change.encrypted
        edit.order.CopyFrom(change.order)
        return True
    return what == "react" and _react(changes, change)


def _react(changes: pb.Changes, change: pb.ChangeEntry) -> bool:
    rows, named = changes.reactions, (change.actor, change.react.code)
    on = change.react.on
    index = bisect_left(rows, named, key=lambda row: (row.uid, row.code))
    if index == len(rows) or (rows[index].uid, rows[index].code) != named:
        uid, code = named
        rows.insert(index, pb.Reacted(uid=uid, code=code, on=on, order=change.order))
        return True
    row = rows[index]
    if _rank(row.order, bytes([row.on])) >= _rank(change.order, bytes([on])):
        return False
    row.on = on
    row.order.CopyFrom(change.order)
    return True


def keys_last(row: oplog.DeviceKeysOp, word: oplog.DeviceKeysOp) -> bool:
    """The later word on a device's keys counts; whether this one changed anything."""
    ranks = [
        _rank(each.order, each.keys.SerializeToString(deterministic=True)) for each in (row, word)
    ]
    if row.HasField("order") and ranks[0] >= ranks[1]:
        return False
    row.CopyFrom(word)
    return True


def set_last(row: oplog.SettingsRow, op: oplog.SettingOp) -> bool:
    """The last word on each setting counts; whether this one changed anything."""
    what = op.WhichOneof("what")
    if what is None:
        return False
    on, held = getattr(op, what), getattr(row, what)
    known = row.HasField(what)
    if known and _rank(held.order, bytes([held.on])) >= _rank(op.order, bytes([on])):
        return False
    held.on = on
    held.order.CopyFrom(op.order)
    return True
