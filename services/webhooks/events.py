"""Ops of an IDC's own log as the events that its webhooks are told. Pure."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from imcore.convert import key_of
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog

Event = dict[str, Any]
PUSH_UIDS_MAX = 500  # in one event
_ROLES: Mapping[int, str] = {
    pb.GROUP_ROLE_MEMBER: "member",
    pb.GROUP_ROLE_ADMIN: "admin",
    pb.GROUP_ROLE_OWNER: "owner",
}


class Route(Protocol):
    """As ``services.route.table`` has it."""

    hlc: int
    gateway: str
    gone: bool
    away_ms: int


class Routes(Protocol):
    """``routes``: of a user's devices, in all IDCs; ``alive``: whether a session stands there."""

    def routes(self, uid: str) -> Mapping[str, Any]: ...
    def alive(self, route: Any) -> bool: ...


def message(op: oplog.Op, content: bool) -> list[Event]:
    """Accepted here: durable, and whoever accepts it again elsewhere tells it there too."""
    if not op.HasField("message"):
        return []
    key = op.message.key
    event: Event = {
        "event": "message",
        "conversation": op.conversation,
        "uid": key.uid,
        "device": key.device,
        "key": _key(op),
        "accepted_ms": op.hlc >> 16,
        "composed_ms": op.message.composed_ms,
        "bytes": len(op.message.content),
    }
    if op.message.encrypted:
        event["encrypted"] = True
    elif content:
        event["content_base64"] = base64.b64encode(op.message.content).decode()
    return [event]


def _key(op: oplog.Op) -> list[Any]:
    return list(key_of(op.message.key))


def group(op: oplog.Op) -> list[Event]:
    if not op.HasField("membership"):
        return []
    changes = op.membership.changes
    return [
        {
            "event": "group",
            "conversation": op.conversation,
            "actor": op.membership.actor,
            "created": op.membership.create,
            "name": op.membership.name,
            "joined": [change.uid for change in changes if change.member],
            "left": [change.uid for change in changes if not change.member],
            "announced": op.membership.HasField("announcement"),
            "roles": {word.uid: _ROLES.get(word.role, "") for word in op.membership.roles},
            "at_ms": op.hlc >> 16,
        }
    ]


def presence(op: oplog.Op, routes: Routes) -> list[Event]:
    """Of a device here; ``user_online`` is what this IDC knows now of all devices everywhere."""
    if not op.HasField("route"):
        return []
    route = op.route
    return [
        {
            "event": "presence",
            "uid": route.uid,
            "device": route.device,
            "kind": route.kind,
            "online": not route.gone,
            "user_online": any(map(routes.alive, routes.routes(route.uid).values())),
            "at_ms": op.hlc >> 16,
        }
    ]


def away(op: oplog.Op, members: Sequence[str], routes: Routes, late: bool) -> list[str]:
    """Who had no connected device when the message was accepted, and has no session now. A session
    outlives its connection by a grace: whose session ended before the message is judged at once,
    whose ended later when the grace is over (``late``), so that nobody is told twice and nobody is
    forgotten."""
    at_ms = op.hlc >> 16
    return [
        uid for uid in members if uid != op.message.key.uid and _is_away(routes, uid, at_ms, late)
    ]


def offline_push(op: oplog.Op, uids: Sequence[str]) -> list[Event]:
    """For those who are ``away`` and want to be told."""
    return [
        {
            "event": "offline_push",
            "uids": uids[start : start + PUSH_UIDS_MAX],
            "conversation": op.conversation,
            "from": op.message.key.uid,
            "key": _key(op),
            "accepted_ms": op.hlc >> 16,
        }
        for start in range(0, len(uids), PUSH_UIDS_MAX)
    ]


def mentioned(op: oplog.Op) -> list[str]:
    """Each once and sorted: an event that is told again is the same event."""
    return sorted(set(pb.Refs.FromString(op.message.refs).mentions))


def _is_away(routes: Routes, uid: str, at_ms: int, late: bool) -> bool:
    ended_later = False
    for route in routes.routes(uid).values():
        if routes.alive(route):
            return False
        if route.gone and (ended_ms := route.hlc >> 16) > at_ms:
            ended_later = True
            if ended_ms - route.away_ms > at_ms:
                return False  # it was connected, and was told
    return ended_later == late
