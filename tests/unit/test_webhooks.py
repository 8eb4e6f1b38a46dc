"""Events and signatures of webhooks; who gets an offline push."""

from __future__ import annotations

import math
import random
from typing import Any

from imcore.hlc import from_ms
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import Origin
from services.route.table import Route
from services.state.session import Owed, Record
from services.webhooks import events
from services.webhooks.feed import wait_s
from services.webhooks.sign import TOLERANCE_MS, signature, verifies

FRA, IAD = Origin("fra", 1), Origin("iad", 1)
AT_MS = 100_000
SECRET = b"of both"


def sent(content: bytes = b"hello") -> oplog.Op:
    op = oplog.Op(hlc=from_ms(AT_MS), conversation="d:ann:bob")
    op.message.key.uid, op.message.key.device, op.message.key.cid = "ann", "phone", 7
    op.message.content = content
    return op


class Routes:
    def __init__(self, *devices: Route) -> None:
        self.devices = {f"d{number}": route for number, route in enumerate(devices)}

    def routes(self, uid: str) -> dict[str, Any]:
        return self.devices if uid == "bob" else {}

    def alive(self, route: Any) -> bool:
        return not route.gone and route.origin != IAD  # iad is lost


def at(ms: int, gone: bool = False, away_ms: int = 0, origin: Origin = FRA) -> Route:
    return Route(1, from_ms(ms), origin, "gw", 1, gone, "", away_ms)


def pushed(*devices: Route) -> tuple[bool, bool]:
    """At once, late."""
    found = [events.away(sent(), ("ann", "bob"), Routes(*devices), late) for late in (False, True)]
    return bool(found[0]), bool(found[1])


def test_a_device_that_is_online_gets_no_offline_push() -> None:
    assert pushed(at(1)) == (False, False)
    assert pushed(at(1, gone=True), at(2)) == (False, False)
    assert pushed(at(AT_MS + 1)) == (False, False)  # it has come since, and syncs
    # It was told, and went a second later.
    assert pushed(at(AT_MS + 1_000, gone=True)) == (False, False)


def test_whoever_is_offline_gets_one_whenever_his_session_ends() -> None:
    assert pushed() == (True, False)
    assert pushed(at(AT_MS - 1, gone=True)) == (True, False)
    assert pushed(at(1, origin=IAD)) == (True, False)
    # Its connection was lost before, its session ended after: judged when the grace is over.
    assert pushed(at(AT_MS + 5_000, gone=True, away_ms=10_000)) == (False, True)
    assert pushed(at(AT_MS + 5_000, True, 10_000), at(AT_MS + 1_000, True)) == (False, False)


def test_pushes_name_many_at_once_and_never_the_sender() -> None:
    members = ["ann", *(f"u{number:04}" for number in range(events.PUSH_UIDS_MAX + 1))]
    first, second = events.offline_push(sent(), events.away(sent(), members, Routes(), False))
    assert first["uids"] == members[1:-1] and second["uids"] == members[-1:]
    assert first["from"] == "ann" and "content_base64" not in first


def test_how_long_a_session_was_not_heard() -> None:
    record = Record("s", "bob", "phone", 1, "gw", 1)
    assert record.unheard_s(50) == 0 and record.away_at == math.inf
    record.away_at = 40
    assert record.unheard_s(50) == 10
    record.owed["d:ann:bob"] = Owed({FRA: 1}, 30)  # and never acked: it was dead by then
    assert record.unheard_s(50) == 22


def test_events_say_what_happened_and_no_more_than_asked_for() -> None:
    [event] = events.message(sent(), content=False)
    assert (event["uid"], event["accepted_ms"], event["bytes"]) == ("ann", AT_MS, 5)
    assert "content_base64" not in event
    [event] = events.message(sent(), content=True)
    assert event["content_base64"] == "aGVsbG8="
    op = oplog.Op(hlc=from_ms(AT_MS), conversation="g:1")
    op.membership.actor = "ann"
    op.membership.changes.add(uid="bob", member=True)
    op.membership.changes.add(uid="eve")
    op.membership.roles.add(uid="bob", role=pb.GROUP_ROLE_ADMIN)
    [event] = events.group(op)
    assert (event["actor"], event["joined"], event["left"]) == ("ann", ["bob"], ["eve"])
    assert not event["announced"]
    assert event["roles"] == {"bob": "admin"}
    assert events.message(op, True) == events.presence(op, Routes()) == []
    op = oplog.Op(hlc=from_ms(AT_MS))
    op.route.uid, op.route.device, op.route.gone = "bob", "phone", True
    [event] = events.presence(op, Routes(at(1)))
    assert (event["online"], event["user_online"]) == (False, True)


def test_no_hook_is_told_encrypted_content() -> None:
    op = sent()
    op.message.encrypted = True
    [event] = events.message(op, content=True)
    assert event["encrypted"] and "content_base64" not in event


def test_a_signature_is_of_one_body_one_time_and_one_secret() -> None:
    shown = signature(SECRET, 1_000, b"body")
    assert verifies(SECRET, 1_000, b"body", shown, 1_000)
    assert not verifies(b"another", 1_000, b"body", shown, 1_000)
    assert not verifies(SECRET, 1_001, b"body", shown, 1_000)
    assert not verifies(SECRET, 1_000, b"bodY", shown, 1_000)
    assert not verifies(SECRET, 1_000, b"body", shown, 1_000 + TOLERANCE_MS + 1)
    for strange in ("", "v1=", "v1=é" + shown[4:], "\udcff"):  # anybody may send a header
        assert not verifies(SECRET, 1_000, b"body", strange, 1_000)


def test_tries_become_rarer() -> None:
    rng = random.Random(1)
    waits = [wait_s(failed, rng) for failed in range(1, 1_000)]
    assert 0.25 <= waits[0] <= 0.5 and 0.5 <= waits[1] <= 1 and 1 <= waits[2] <= 2
    assert all(30 <= wait <= 60 for wait in waits[7:])
