"""What edits, recalls and reactions make of a message: the same fold in every IDC and device. Pure.

The last edit counts and the last word of each user on each reaction, by place; a recall is for
good, whatever comes before or after it. So the order in which changes come does not matter.
"""

from __future__ import annotations

from bisect import bisect_left

from imcore.convert import place_of, place_pb
from imcore.proto import client_pb2 as pb
from imcore.words import Place


def merge(changes: pb.Changes, change: pb.ChangeEntry, place: Place) -> bool:
    """Fold one change, first accepted at ``place``; whether that changed anything."""
    what = change.WhichOneof("what")
    if what == "recall":
        if changes.recalled:
            return False
        changes.recalled = True
        changes.ClearField("edit")
        return True
    if what == "edit":
        older = changes.HasField("edit") and place_of(changes.edit.at) >= place
        if changes.recalled or older:
            return False
        changes.edit.content = change.edit
        changes.edit.at.CopyFrom(place_pb(place))
        return True
    return what == "react" and _react(changes, change, place)


def _react(changes: pb.Changes, change: pb.ChangeEntry, place: Place) -> bool:
    named = (change.actor, change.react.code)
    rows = list(changes.reactions)
    index = bisect_left(rows, named, key=lambda row: (row.uid, row.code))
    if index < len(rows) and (rows[index].uid, rows[index].code) == named:
        if place_of(rows[index].at) >= place:
            return False
        del rows[index]
    uid, code = named
    on = change.react.on
    rows.insert(index, pb.Reacted(uid=uid, code=code, on=on, at=place_pb(place)))
    del changes.reactions[:]
    changes.reactions.extend(rows)
    return True
