"""Signed, expiring tokens of the operator's own servers: what each may ask of the admin API, and as
which user it speaks (docs/admin-api.md). Never taken for a client's token, nor the other way.
"""

from __future__ import annotations

from enum import StrEnum
from typing import NamedTuple

from pydantic import TypeAdapter

from imcore.attest import RegionKeys
from imcore.errors import Code, Refused
from imcore.tokens import LEEWAY_MS, opened, signed
from imcore.words import valid_id

PURPOSE = b"service-token"


class Scope(StrEnum):
    """What a service may do."""

    MESSAGES = "messages"  # send as its user; recall anybody's
    GROUPS = "groups"  # create any group, change its members, name and roles
    KICK = "kick"  # end sessions
    READ = "read"  # members of groups, who is online


class Service(NamedTuple):
    """``name``: of the server, for limits and the audit log. ``uid``: as whom it speaks."""

    name: str
    uid: str
    scopes: tuple[Scope, ...]
    expires_ms: int

    def demand(self, scope: Scope) -> None:
        """Raises Refused(FORBIDDEN)."""
        if scope not in self.scopes:
            raise Refused(Code.FORBIDDEN, f"the token has not the scope {scope}")


class _Claims(NamedTuple):
    """As it stands in the token."""

    service: str
    uid: str
    scopes: list[str]
    expires_ms: int


_CLAIMS = TypeAdapter(_Claims)


def mint(keys: RegionKeys, service: Service) -> str:
    claims = _Claims(service.name, service.uid, list(service.scopes), service.expires_ms)
    return signed(keys, claims._asdict(), PURPOSE)


def verify(keys: RegionKeys, token: str, now_ms: int) -> Service:
    """Raises Refused(UNAUTHENTICATED); the message never repeats the token."""
    claims = opened(keys, token, PURPOSE, _CLAIMS)
    if claims.expires_ms + LEEWAY_MS <= now_ms:
        raise Refused(Code.UNAUTHENTICATED, "the token has expired")
    known = tuple(scope for scope in Scope if scope in claims.scopes)
    if not (valid_id(claims.service) and valid_id(claims.uid) and known):
        message = "the token names an invalid service or uid, or no scope"
        raise Refused(Code.UNAUTHENTICATED, message)
    return Service(claims.service, claims.uid, known, claims.expires_ms)
