"""The placement ticket: ipconf's signed word on a client's shard, for the IDC it connects to."""

from __future__ import annotations

import base64
import json
from typing import NamedTuple

from pydantic import TypeAdapter

from imcore.attest import RegionKeys
from imcore.region.model import Region

PURPOSE = b"placement"


class Ticket(NamedTuple):
    shard: str
    uid: str
    epoch: int


_TICKET = TypeAdapter(Ticket)


def mint(keys: RegionKeys, ticket: Ticket) -> str:
    body = json.dumps(ticket._asdict(), separators=(",", ":")).encode()
    return f"{_b64(body)}.{_b64(keys.sign(body, PURPOSE))}"


def read(keys: RegionKeys, text: bytes) -> Ticket | None:
    """None for a ticket that this region has not signed: such a client is in the default shard."""
    try:
        body, signature = (_unb64(part) for part in text.split(b"."))
        if not keys.check(body, signature, PURPOSE):
            return None
        return _TICKET.validate_json(body, strict=True)
    except ValueError:
        return None


def shard_of(keys: RegionKeys, text: bytes, uid: str, region: Region) -> str:
    """Of a client that shows this ticket."""
    found = read(keys, text)
    return found.shard if found is not None and found.uid == uid else region.spec.geo.default


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(data: bytes) -> bytes:
    return base64.urlsafe_b64decode(data + b"=" * (-len(data) % 4))
