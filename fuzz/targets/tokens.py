"""Tokens, placement tickets and resume tokens. What this region has not signed is refused, and
what it has signed, whatever stands in it, is either understood or refused: never another error.

The first byte says how the rest is presented: as it came, or signed (a token of another version
of this program, or of a tool of the operators)."""

from __future__ import annotations

import base64
import json

from fuzz.target import Target
from imcore import tokens
from imcore.attest import RegionKeys
from imcore.errors import Refused
from services.ipconf import ticket
from services.state import resume

KEYS = RegionKeys({1: b"k" * 32, 2: b"l" * 32}, 2)
NOW_MS = 1_700_000_000_000
FAR_MS = NOW_MS + 10**9
CLAIMS = tokens.Claims("ann", "phone", FAR_MS)
TICKET = ticket.Ticket("europe", "ann", 3)


def check(data: bytes) -> None:
    signed, body = bool(data) and bool(data[0] & 1), data[1:]
    _token(body, signed)
    _ticket(body, signed)
    _resume(body, signed)


def _token(body: bytes, signed: bool) -> None:
    text = _signed(body, tokens.PURPOSE) if signed else body.decode("ascii", "replace")
    try:
        claims = tokens.verify(KEYS, text, NOW_MS)
    except Refused as error:
        assert len(body) < 16 or text not in str(error), "an error repeats the token"
        return
    assert signed or claims == CLAIMS, "a token that nobody signed was taken"
    assert isinstance(claims.admin, bool)
    assert tokens.verify(KEYS, tokens.mint(KEYS, claims), NOW_MS) == claims


def _ticket(body: bytes, signed: bool) -> None:
    found = ticket.read(KEYS, _signed(body, ticket.PURPOSE).encode() if signed else body)
    if found is not None:
        assert signed or found == TICKET, "a ticket that nobody signed was taken"
        assert ticket.read(KEYS, ticket.mint(KEYS, found).encode()) == found
        assert (type(found.shard), type(found.uid)) == (str, str)


def _resume(body: bytes, signed: bool) -> None:
    token = KEYS.sign(body, resume.PURPOSE) + body if signed else body
    found = resume.open_token(KEYS, token, NOW_MS)
    if found is not None:
        assert signed, "a resume token that nobody signed was taken"
        assert resume.open_token(KEYS, resume.seal(KEYS, found), NOW_MS) == found
        # As the state role uses it.
        for partition, lsn in found.lsns.items():
            assert 0 <= int(partition) < 1 << 32
            assert 0 <= lsn < 1 << 64


def _signed(body: bytes, purpose: bytes) -> str:
    parts = (body, KEYS.sign(body, purpose))
    return ".".join(base64.urlsafe_b64encode(part).rstrip(b"=").decode() for part in parts)


def seeds() -> list[bytes]:
    again = resume.seal(
        KEYS, resume.Resume("s1", "ann", "phone", 4, FAR_MS, "fra", 1, {"0": 12, "3": 7})
    )
    asked = {"uid": "ann", "device": "phone", "expires_ms": FAR_MS, "admin": False}
    shard = {"shard": "europe", "uid": "ann", "epoch": 3}
    return [
        b"\0" + tokens.mint(KEYS, CLAIMS).encode(),
        b"\0" + ticket.mint(KEYS, TICKET).encode(), b"\1" + again[20:],
        b"\1" + json.dumps(asked).encode(), b"\1" + json.dumps(shard).encode(),
    ]  # fmt: skip


WORDS = [b"null", b"true", b"-1", b"1e400", b"NaN", b"[[[[[[[[", b"{}", b'""', b'"uid"', b'"lsns"']
TARGET = Target("tokens", check, seeds, words=WORDS)
