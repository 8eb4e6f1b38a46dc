"""Which ops a program can fold: its level, a number that rises with each op that is new.

A program that came upon an op it does not know, and went on behind it, would hold another state
than the others for good. So an op says which level folds it, a reader waits in front of one above
its own until the newer program is started there, and nobody writes such an op before every IDC
folds it (``services.control.levels``). Levels are never lowered.
"""

from __future__ import annotations

from imcore.proto import oplog_pb2 as oplog

LEVEL = 2  # of this program
FIRST = 1  # of ops and programs that do not say
ENCRYPTION = 2  # keys of devices, the switch of a conversation, encrypted content


def level_of(op: oplog.Op) -> int:
    """The least level that folds it. One without a body that is known here is above ours, whatever
    it says."""
    said = op.level or FIRST
    return said if op.WhichOneof("body") is not None else max(said, LEVEL + 1)
