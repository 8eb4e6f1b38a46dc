"""Who asks over HTTP: the token of the header ``Authorization``."""

from __future__ import annotations

from imcore.attest import RegionKeys
from imcore.errors import Code, Refused
from imcore.tokens import Claims, verify


def token_of(header: str) -> str:
    """Raises Refused(UNAUTHENTICATED)."""
    scheme, _, token = header.partition(" ")
    if scheme.lower() != "bearer":
        raise Refused(Code.UNAUTHENTICATED, "expected the header Authorization: Bearer TOKEN")
    return token.strip()


def claims_of(header: str, keys: RegionKeys, now_ms: int) -> Claims:
    """Raises Refused(UNAUTHENTICATED). ``now_ms``: as for ``imcore.tokens.verify``."""
    return verify(keys, token_of(header), now_ms)
