"""What is written down beside each snapshot: enough to judge it without opening it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import NamedTuple

from imcore.convert import origin_of
from imcore.errors import Damaged
from imcore.proto import oplog_pb2 as oplog
from imcore.words import Origin, parse_origin
from services.ports import LogEnd
from services.retention.decide import Ends

DESCRIPTION = "retention.json"
_FORMAT = 1

Positions = dict[tuple[Origin, int], LogEnd]  # of each origin and partition, where a fold stands


class Folded(NamedTuple):
    vector: dict[Origin, tuple[int, ...]]
    positions: Positions


@dataclass(frozen=True, slots=True)
class Description:
    """``vector``: the lsns up to which the snapshot has folded each origin, by partition."""

    name: str
    taken_ms: int
    taken_by: str  # origin
    vector: Ends
    seals: Ends
    safe: bool = False

    def marked_safe(self) -> Description:
        return replace(self, safe=True)

    def dump(self) -> bytes:
        document = {
            "format": _FORMAT,
            "name": self.name,
            "taken_ms": self.taken_ms,
            "taken_by": self.taken_by,
            "vector": {str(origin): list(row) for origin, row in self.vector.items()},
            "seals": {str(origin): list(row) for origin, row in self.seals.items()},
            "safe": self.safe,
        }
        return json.dumps(document, sort_keys=True).encode()

    @staticmethod
    def parse(text: bytes | str) -> Description:
        """Raises Damaged."""
        try:
            document = json.loads(text)
            if document["format"] != _FORMAT:
                raise Damaged(f"a snapshot's description has the format {document['format']}")
            return Description(
                str(document["name"]),
                int(document["taken_ms"]),
                str(document["taken_by"]),
                _ends(document["vector"]),
                _ends(document["seals"]),
                bool(document["safe"]),
            )
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Damaged(f"a snapshot's description cannot be read: {error!r}") from error


def _ends(document: dict[str, list[int]]) -> dict[Origin, tuple[int, ...]]:
    return {parse_origin(origin): tuple(map(int, row)) for origin, row in document.items()}


def folded(checkpoints: Mapping[int, bytes], partitions: int) -> Folded:
    """Where the checkpoints of a KV stand."""
    rows: dict[Origin, list[int]] = {}
    positions: Positions = {}
    for partition, checkpoint in checkpoints.items():
        for at in oplog.CheckpointRow.FromString(checkpoint).applied:
            origin = origin_of(at.origin)
            rows.setdefault(origin, [0] * partitions)[partition] = at.lsn
            positions[origin, partition] = LogEnd(at.lsn, at.chain, at.epoch)
    return Folded({origin: tuple(row) for origin, row in rows.items()}, positions)
