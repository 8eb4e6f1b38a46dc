"""The admin API over real HTTPS: who may ask, what im makes of it, what is written down."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from imcore import tokens
from imcore.errors import Code
from imcore.proto import client_pb2 as pb
from imcore.servicetokens import Scope
from imcore.tls import client_ssl_context
from imctl.commands.service import service_token
from imctl.target.places import free_ports
from imctl.testing.onenode import running
from services.adminapi import documents as docs
from services.adminapi.server import BODY_BYTES_MAX
from services.im.testing import KEYS
from services.node.testing_admin import AdminSite

GROUP = "g:0c5ff8e0"


class Caller:
    """One of the operator's servers. ``codes``: of the errors that it was answered."""

    def __init__(self, site: AdminSite, token: str) -> None:
        self.site = site
        self.http = site.client()
        self.token = token

    async def ask(
        self, method: str, path: str, body: Any = None, key: str = ""
    ) -> tuple[int, dict[str, Any]]:
        headers = {"Authorization": f"Bearer {self.token}"}
        headers |= {"Idempotency-Key": key} if key else {}
        async with self.http.request(
            method, f"{self.site.url}{path}", json=body, headers=headers
        ) as answer:
            return answer.status, await answer.json()

    async def code(self, method: str, path: str, body: Any = None, key: str = "") -> str:
        status, answer = await self.ask(method, path, body, key)
        return "" if status == 200 else str(answer["error"]["code"])

    async def send(self, to: str, text: str, key: str) -> tuple[int, dict[str, Any]]:
        return await self.ask("POST", "/v1/messages", {"to": to, "text": text}, key)


@pytest.fixture
async def caller(tmp_path: Path, pki_dir: Path) -> AsyncIterator[Caller]:
    site = AdminSite(tmp_path, pki_dir)
    await site.start()
    found = Caller(site, site.token())
    yield found
    await found.http.close()
    await site.stop()


async def create(caller: Caller, *members: str) -> None:
    body = {"owner": "ann", "members": list(members), "name": "team"}
    assert await caller.ask("PUT", f"/v1/groups/{GROUP}", body) == (200, {})


async def test_plain_text_is_refused_where_it_is_to_be_encrypted(caller: Caller) -> None:
    idc = caller.site.idc
    made = pb.GroupCreate(conversation=GROUP, members=["bob"], encrypted=True)
    response = await idc.ask(idc.session("ann"), pb.Request(group_create=made))
    assert not response.HasField("error")
    status, answer = await caller.send(GROUP, "all may read it", "k1")
    assert (status, answer["error"]["code"]) == (403, Code.ENCRYPTED_ONLY)


async def test_a_message_with_one_key_is_sent_once(caller: Caller) -> None:
    status, first = await caller.send("ann", "paid", "order-17")
    assert (status, first["known"], first["conversation"]) == (200, False, "d:ann:notices")
    status, again = await caller.send("ann", "paid", "order-17")
    assert (status, again["known"], again["key"]) == (200, True, first["key"])
    assert (await caller.send("ann", "refunded", "order-18"))[1]["known"] is False
    status, answer = await caller.send("ann", "another text", "order-17")
    assert (status, answer["error"]["code"]) == (409, Code.CID_CONFLICT)
    idc = caller.site.idc
    contents = await idc.contents(idc.session("ann"), "d:ann:notices")
    assert contents == [b"paid", b"refunded"]


async def test_a_service_speaks_in_a_group_that_it_is_not_in(caller: Caller) -> None:
    assert (await caller.send(GROUP, "hello", "1"))[0] == 404
    await create(caller, "bob")
    assert (await caller.send(GROUP, "hello", "1"))[0] == 200
    idc = caller.site.idc
    assert await idc.contents(idc.session("bob"), GROUP) == [b"hello"]
    stranger = await idc.send(idc.session("notices"), GROUP, 1)
    assert stranger.error.code == Code.FORBIDDEN  # its user has no rights by itself


async def test_bytes_are_content_too(caller: Caller) -> None:
    body = {"to": "ann", "content_base64": "AAEC/w==", "mentions": ["ann"]}
    assert (await caller.ask("POST", "/v1/messages", body, "k"))[0] == 200
    idc = caller.site.idc
    assert await idc.contents(idc.session("ann"), "d:ann:notices") == [b"\x00\x01\x02\xff"]


async def test_a_service_recalls_what_others_sent(caller: Caller) -> None:
    await create(caller, "bob")
    idc = caller.site.idc
    sent = await idc.send(idc.session("bob"), GROUP, 1, b"rude")
    key = sent.send_ack.placed.key
    named = {field: getattr(key, field) for field in docs.MessageKey.model_fields}
    await idc.folded()
    for _ in range(2):
        assert await caller.ask("POST", "/v1/messages/recall", {"key": named}) == (200, {})
    assert await idc.contents(idc.session("ann"), GROUP) == [b""]
    named["cid"] = 2
    assert await caller.code("POST", "/v1/messages/recall", {"key": named}) == Code.NOT_FOUND


async def test_a_service_stands_above_the_roles_of_a_group(caller: Caller) -> None:
    await create(caller, "bob", "carl")
    await create(caller, "eve")  # it is there, and stays as it is
    path = f"/v1/groups/{GROUP}"
    change = {
        "join": ["dan"],
        "leave": ["ann"],
        "name": "crew",
        "roles": [{"uid": "bob", "role": "owner"}],
    }
    for _ in range(2):
        assert await caller.ask("PATCH", path, change) == (200, {})
    status, group = await caller.ask("GET", path)
    assert status == 200
    assert group == {
        "conversation": GROUP, "name": "crew", "members": ["bob", "carl", "dan"], "more": False,
        "count": 3, "owner": "bob", "admins": [],
    }  # fmt: skip
    assert (await caller.ask("GET", f"{path}?after=bob"))[1]["members"] == ["carl", "dan"]
    idc = caller.site.idc
    back = await idc.change(idc.session("ann"), GROUP, join=["ann"])
    assert back.error.code == Code.FORBIDDEN  # she was removed by another
    assert await caller.code("GET", "/v1/groups/g:another") == Code.NOT_FOUND


async def test_kicks_and_who_is_online(caller: Caller) -> None:
    assert await caller.ask("POST", "/v1/users/ann/kick", {}) == (200, {})
    assert await caller.ask("POST", "/v1/users/ann/kick", {"device": "phone"}) == (200, {})
    own = caller.site.idc.logs.own()
    assert own is not None
    assert own.end(0).lsn >= 2
    status, found = await caller.ask("GET", "/v1/users?uid=ann&uid=bob&uid=ann")
    assert status == 200
    assert [each["uid"] for each in found["users"]] == ["ann", "bob"]


async def test_a_token_opens_what_its_scopes_say(caller: Caller) -> None:
    asked = {
        Scope.MESSAGES: ("POST", "/v1/messages", {"to": "ann", "text": "x"}),
        Scope.GROUPS: ("PATCH", f"/v1/groups/{GROUP}", {"join": ["x"]}),
        Scope.KICK: ("POST", "/v1/users/ann/kick", {}),
        Scope.READ: ("GET", "/v1/users?uid=ann", None),
    }
    await create(caller)
    for own in Scope:
        caller.token = caller.site.token(own)
        for scope, (method, path, body) in asked.items():
            expected = "" if scope is own else Code.FORBIDDEN
            assert await caller.code(method, path, body, "k") == expected, (own, scope)


async def test_no_other_token_is_taken(caller: Caller) -> None:
    path = "/v1/users?uid=ann"
    later = caller.site.clock.wall_ms() + 60_000
    claims = tokens.Claims("ann", "phone", later, admin=True)
    for token in (
        tokens.mint(KEYS, claims),  # a client's
        caller.site.token(for_ms=-10_000),
        caller.site.token()[:-2],
        "",
    ):
        caller.token = token
        assert await caller.code("GET", path) == Code.UNAUTHENTICATED
    with pytest.raises(Exception, match="signature"):
        tokens.verify(KEYS, caller.site.token(), 0)


async def test_a_service_is_limited_by_itself(tmp_path: Path, pki_dir: Path) -> None:
    site = AdminSite(tmp_path, pki_dir, per_s=2)
    await site.start()
    caller = Caller(site, site.token())
    codes = [await caller.code("GET", "/v1/users?uid=ann") for _ in range(20)]
    caller.token = site.token(name="another")
    other = await caller.code("GET", "/v1/users?uid=ann")
    await caller.http.close()
    await site.stop()
    assert codes.count(Code.OVERLOADED) >= 2
    assert codes[0] == other == ""
    assert site.verbs.known["users"].failures == {Code.OVERLOADED: codes.count(Code.OVERLOADED)}


async def test_what_changes_something_stands_in_the_audit_log(
    caller: Caller, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "im.audit")
    await caller.send("ann", "very private", "order-17")
    await caller.code("PATCH", f"/v1/groups/{GROUP}", {"join": ["bob"]})
    await caller.code("GET", "/v1/users?uid=ann")
    caller.token = caller.site.token(Scope.READ)
    await caller.code("POST", "/v1/users/ann/kick", {})
    caller.token = "nobody's"
    await caller.code("POST", "/v1/users/ann/kick", {})
    rows = [json.loads(record.getMessage()) for record in caplog.records]
    assert [(row["by"], row["decision"], row["sentence"].split(":")[0]) for row in rows] == [
        ("service billing", "committed", "send ann"),
        ("service billing", "refused", "change_group g"),
        ("service billing", "refused", "kick "),
    ]
    assert rows[0]["idempotency_key"] == "order-17"
    assert rows[1]["join"] == ["bob"]
    assert "private" not in json.dumps(rows)


async def test_what_fails_or_is_cut_off_stands_in_the_audit_log_too(
    caller: Caller, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It may have happened all the same."""
    caplog.set_level(logging.INFO, "im.audit")
    asked = asyncio.Event()

    async def broken(uid: str, device: str) -> None:
        raise RuntimeError("private")

    async def stuck(uid: str, device: str) -> None:
        asked.set()
        await asyncio.Event().wait()

    monkeypatch.setattr(caller.site.api, "_kick", broken)
    assert await caller.code("POST", "/v1/users/ann/kick", {}) == Code.INTERNAL
    big = {"device": "x" * (BODY_BYTES_MAX + 1)}
    assert await caller.code("POST", "/v1/users/ann/kick", big) == Code.TOO_LARGE
    monkeypatch.setattr(caller.site.api, "_kick", stuck)
    waiting = asyncio.ensure_future(caller.code("POST", "/v1/users/ann/kick", {}))
    await asked.wait()
    await caller.site.api.stop()
    with pytest.raises(aiohttp.ClientError):
        await waiting
    rows = [
        json.loads(record.getMessage()) for record in caplog.records if record.name == "im.audit"
    ]
    assert [(row["decision"], row["sentence"]) for row in rows] == [
        ("unknown", "kick ann: internal: it failed unexpectedly; the log says why"),
        ("refused", "kick : too_large: the body is too long"),
        ("unknown", "kick ann: unavailable: the IDC stopped before it was answered"),
    ]


async def test_what_no_other_idc_holds_is_not_answered_as_done(caller: Caller) -> None:
    caller.site.idc.followers.clear()
    caller.site.idc.hurry()
    status, answer = await caller.send("ann", "paid", "order-17")
    assert (status, answer["error"]["code"]) == (503, Code.UNAVAILABLE)
    assert answer["error"]["retry_after_ms"] > 0
    caller.site.idc.hurry(False)
    caller.site.idc.hold("iad")
    status, answer = await caller.send("ann", "paid", "order-17")
    assert (status, answer["known"]) == (200, True)


async def test_a_node_serves_it_to_whom_imctl_gave_a_token(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (port,) = free_ports(1)

    def edit(spec: dict[str, Any]) -> None:
        spec["idcs"][0]["endpoints"]["admin"] = f"127.0.0.1:{port}"

    async with running(tmp_path, False, edit=edit) as node:
        service_token("billing", "notices", [Scope.MESSAGES], data=tmp_path)
        headers = {
            "Authorization": f"Bearer {capsys.readouterr().out.strip()}",
            "Idempotency-Key": "order-17",
        }
        tls = client_ssl_context(node.config.pki / "ca.pem")
        async with (
            aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http,
            http.post(
                f"https://localhost:{port}/v1/messages",
                json={"to": "ann", "text": "paid"},
                headers=headers,
            ) as answer,
        ):
            assert answer.status == 200, await answer.text()
        assert node.measured is not None
        assert sum(node.measured.verbs["admin"].known["send"].buckets) == 1
