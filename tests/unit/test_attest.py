"""What a MAC by the region key is over: exactly one place, one HLC, one token."""

from __future__ import annotations

import pytest

from imcore import tokens
from imcore.attest import RegionKeys, content_hash
from imcore.errors import Refused
from imcore.words import Attested, ClientKey, Origin, Place
from services.ipconf import ticket
from services.state import resume

KEYS = RegionKeys({1: b"k" * 32}, 1)
FRA, IAD = Origin("fra", 1), Origin("iad", 12)
KEY = ClientKey("ann", "phone", "o1", "d:ann:bob", 7)
DIGEST = content_hash(b"hello")


def test_a_place_with_any_field_changed_does_not_verify() -> None:
    signed = KEYS.attest(KEY, DIGEST, FRA, 5, Place(100, IAD, 6))
    assert KEYS.verify(signed)
    changed = [
        signed._replace(key=KEY._replace(uid="x")),
        signed._replace(key=KEY._replace(device="x")),
        signed._replace(key=KEY._replace(outbox="x")),
        signed._replace(key=KEY._replace(conversation="x")),
        signed._replace(key=KEY._replace(cid=8)),
        signed._replace(content_hash=content_hash(b"other")),
        signed._replace(origin=IAD),
        signed._replace(origin=Origin("fra", 2)),
        signed._replace(seq=6),
        signed._replace(place=Place(99, IAD, 6)),
        signed._replace(place=Place(100, FRA, 6)),
        signed._replace(place=Place(100, IAD, 5)),
        signed._replace(mac=signed.mac[:-1]),
        signed._replace(key_id=2),
    ]
    assert not any(KEYS.verify(forged) for forged in changed)


def test_a_separator_inside_an_id_does_not_forge_a_place() -> None:
    """With fields joined by NUL, an IDC that took this conversation id signed, in truth, a place
    at HLC 1 for another client key."""
    hidden = "\0".join(("d:mallory:victim", "7", "fra.1", "1", "1", "fra.1", "1"))
    truth = KEY._replace(uid="mallory", conversation=hidden)
    signed = KEYS.attest(truth, DIGEST, FRA, 5, Place(100, FRA, 5))
    rest = "\0".join(("7", "fra.1", "5", "100", "fra.1", "5", "")).encode() + DIGEST
    for digest in (rest, DIGEST):
        forged = Attested(
            truth._replace(conversation="d:mallory:victim"),
            digest, FRA, 1, Place(1, FRA, 1), signed.key_id, signed.mac,
        )  # fmt: skip
        assert not KEYS.verify(forged)


def test_texts_cannot_lend_each_other_bytes() -> None:
    signed = KEYS.attest(KEY, DIGEST, FRA, 5, Place(100, FRA, 5))
    for uid, device in (("annp", "hone"), ("an", "nphone")):
        assert not KEYS.verify(signed._replace(key=KEY._replace(uid=uid, device=device)))


@pytest.mark.parametrize("digest", [b"", DIGEST[:15], DIGEST + b"0"])
def test_a_content_hash_of_another_length_is_no_attestation(digest: bytes) -> None:
    """Also when the region itself has signed it: what follows the head must have one length."""
    assert not KEYS.verify(KEYS.attest(KEY, digest, FRA, 5, Place(100, FRA, 5)))


def test_one_kind_of_token_is_not_taken_for_another() -> None:
    """All are signed by the same key; the purpose is in the MAC."""
    token = resume.Resume("s", "ann", "phone", 1, 1 << 60, "fra", 1)
    sealed = resume.seal(KEYS, token)
    assert resume.open_token(KEYS, sealed, 0) == token
    assert ticket.read(KEYS, ticket.mint(KEYS, ticket.Ticket("eu", "ann", 3)).encode()) is not None
    with pytest.raises(Refused):
        tokens.verify(KEYS, ticket.mint(KEYS, ticket.Ticket("eu", "ann", 3)), 0)
    client = tokens.mint(KEYS, tokens.Claims("ann", "phone", 1 << 60))
    assert ticket.read(KEYS, client.encode()) is None
    signature, body = sealed[:20], sealed[20:]
    for purpose in (tokens.PURPOSE, ticket.PURPOSE, b"place", b"hlc"):
        assert not KEYS.check(body, signature, purpose)
    # The body is taken as it was signed, byte for byte, so no two readings of it can differ.
    assert resume.open_token(KEYS, signature + body + b" ", 0) is None


def test_a_stamp_is_of_one_hlc() -> None:
    stamp = KEYS.stamp(1 << 40)
    assert KEYS.seen(stamp) == 1 << 40
    assert KEYS.seen(stamp._replace(hlc=(1 << 40) + 1)) == 0
    assert KEYS.seen(stamp._replace(mac=stamp.mac + b"0")) == 0


def test_the_content_hash_is_over_what_a_message_refers_to() -> None:
    """And tells apart where one ends and the other begins, and that there is any."""
    found = {
        content_hash(b"ab"), content_hash(b"b", b"a"), content_hash(b"", b"ab"),
        content_hash(b"\0\0\0\1ab"), content_hash(b"ab", b"a"),
    }  # fmt: skip
    assert len(found) == 5
