"""Signed, expiring client tokens: who (uid, device) may speak until when.

base64url( JSON claims ) "." base64url( signature by the region key ).
"""

from __future__ import annotations

import base64
import json
from typing import NamedTuple

from pydantic import TypeAdapter

from imcore.attest import RegionKeys
from imcore.errors import Code, Refused
from imcore.words import DEVICE_KINDS, valid_id

PURPOSE = b"client-token"
# A token is taken for so long after it has expired: the clock of who made it is not the judge's,
# and the judge's may be half a second off the median of the IDCs' clocks.
LEEWAY_MS = 5_000


class Claims(NamedTuple):
    uid: str
    device: str
    expires_ms: int
    admin: bool = False
    kind: str = ""  # of the device, one of DEVICE_KINDS


_CLAIMS = TypeAdapter(Claims)


def mint(keys: RegionKeys, claims: Claims) -> str:
    body = json.dumps(claims._asdict(), separators=(",", ":")).encode()
    signature = keys.sign(body, PURPOSE)
    return f"{_b64(body)}.{_b64(signature)}"


def verify(keys: RegionKeys, token: str, now_ms: int) -> Claims:
    """Raises Refused(UNAUTHENTICATED); the message never repeats the token. ``now_ms``: on a clock
    that is held to the other IDCs' (``services.node.clock``)."""
    try:
        body_text, signature_text = token.split(".")
        body, signature = _unb64(body_text), _unb64(signature_text)
        if not keys.check(body, signature, PURPOSE):
            raise Refused(Code.UNAUTHENTICATED, "the token's signature does not verify")
        claims = _CLAIMS.validate_json(body, strict=True)
    except ValueError as error:
        raise Refused(
            Code.UNAUTHENTICATED, "the token is not of the form CLAIMS.SIGNATURE"
        ) from error
    if claims.expires_ms + LEEWAY_MS <= now_ms:
        raise Refused(Code.UNAUTHENTICATED, "the token has expired")
    if not (valid_id(claims.uid) and valid_id(claims.device)):
        raise Refused(Code.UNAUTHENTICATED, "the token names an invalid uid or device")
    if claims.kind not in DEVICE_KINDS:
        raise Refused(Code.UNAUTHENTICATED, "the token names an unknown kind of device")
    return claims


def _b64(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def _unb64(text: str) -> bytes:
    return base64.urlsafe_b64decode(text + "=" * (-len(text) % 4))
