"""Signed, expiring client tokens: who (uid, device) may speak until when.

base64url( JSON claims ) "." base64url( signature by the region key ).
"""

from __future__ import annotations

import base64
import json
from typing import Any, NamedTuple, TypeVar

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


_T = TypeVar("_T")


def mint(keys: RegionKeys, claims: Claims) -> str:
    return signed(keys, claims._asdict(), PURPOSE)


def signed(keys: RegionKeys, claims: dict[str, Any], purpose: bytes) -> str:
    """A token of any kind; ``purpose`` tells one kind from another."""
    body = json.dumps(claims, separators=(",", ":")).encode()
    return f"{_b64(body)}.{_b64(keys.sign(body, purpose))}"


def opened(keys: RegionKeys, token: str, purpose: bytes, form: TypeAdapter[_T]) -> _T:
    """What a token says, if this region has signed it for that purpose; whether it has expired is
    not judged. Raises as ``verify``."""
    try:
        body_text, signature_text = token.split(".")
        body, signature = _unb64(body_text), _unb64(signature_text)
        if not keys.check(body, signature, purpose):
            raise Refused(Code.UNAUTHENTICATED, "the token's signature does not verify")
        return form.validate_json(body, strict=True)
    except ValueError as error:
        raise Refused(
            Code.UNAUTHENTICATED, "the token is not of the form CLAIMS.SIGNATURE"
        ) from error


def verify(keys: RegionKeys, token: str, now_ms: int) -> Claims:
    """Raises Refused(UNAUTHENTICATED); the message never repeats the token. ``now_ms``: on a clock
    that is held to the other IDCs' (``services.node.clock``)."""
    claims = opened(keys, token, PURPOSE, _CLAIMS)
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
