"""ipconf over real HTTPS: who asks, from where, and what they are told."""

from __future__ import annotations

import asyncio
import json
import ssl
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import aiohttp
import jsonschema
import pytest

from imcore.tls import client_ssl_context
from imcore.tokens import LEEWAY_MS
from services.engines.disk import RealDisk
from services.ipconf.reports import EVERY_S
from services.ipconf.server import _parameters
from services.ipconf.ticket import Ticket, read
from services.node.testing_ipconf import IpconfSite
from services.policy.document import IdcState
from services.policy.holder import PolicyHolder

OPENAPI = json.loads((Path(__file__).parents[2] / "docs" / "ipconf.openapi.json").read_text())


def documented(method: str, path: str, status: int, body: Any) -> None:
    """Raises when the answer is not one that docs/ipconf.openapi.json has."""
    if path not in OPENAPI["paths"]:
        assert status == 404
        name = "Error"
    else:
        answer = OPENAPI["paths"][path][method]["responses"][str(status)]
        if "$ref" in answer:
            answer = OPENAPI["components"]["responses"][answer["$ref"].rpartition("/")[2]]
        if "content" not in answer:
            assert body is None
            return
        name = answer["content"]["application/json"]["schema"]["$ref"].rpartition("/")[2]
    schema = {"$ref": f"#/components/schemas/{name}", "components": OPENAPI["components"]}
    jsonschema.Draft202012Validator(schema).validate(body)


class Api(IpconfSite):
    """A running ipconf and a client of it, which holds every answer against the document."""

    async def start(self) -> None:
        await super().start()
        self.http = self.client()

    async def stop(self) -> None:
        await self.http.close()
        await super().stop()

    async def get(
        self, token: str | None = None, query: str = "", **headers: str
    ) -> tuple[int, dict[str, Any]]:
        headers = {name.replace("_", "-"): value for name, value in headers.items()}
        bearer = {"Authorization": f"Bearer {self.token() if token is None else token}"}
        async with self.http.get(
            f"{self.url}/v1/gateways{query}", headers=bearer | headers
        ) as response:
            body = await response.json()
            documented("get", "/v1/gateways", response.status, body)
            return response.status, body

    async def report(self, body: Any, uid: str = "alice") -> int:
        headers = {"Authorization": f"Bearer {self.token(uid)}"}
        async with self.http.post(f"{self.url}/v1/reports", data=body, headers=headers) as response:
            answer = await response.json() if await response.read() else None
            documented("post", "/v1/reports", response.status, answer)
            self.wait_ms = answer["error"]["retry_after_ms"] if answer else 0
            return response.status


@pytest.fixture
async def api(tmp_path: Path, pki_dir: Path) -> AsyncIterator[Api]:
    found = Api(tmp_path, pki_dir)
    await found.start()
    yield found
    await found.stop()


async def test_a_client_is_told_where_to_connect(api: Api) -> None:
    await api.holder.offer(api.policy())
    api.holder.stale = False
    status, body = await api.get(query="?network=wifi&last=", X_Forwarded_For="8.8.8.8")
    assert status == 200
    assert (body["policy_epoch"], body["stale"], body["shard"]) == (3, False, "americas")
    assert body["idcs"] == ["iad", "fra", "sin"]
    first = body["gateways"][0]
    assert first == {
        "idc": "iad",
        "gateway": "iad-gw-1",
        "host": "127.0.0.1",
        "port": 17110,
        "score": 1.0,
    }
    assert body["parameters"]["heartbeat_ms"] == api.region.spec.client.heartbeat_ms
    assert body["parameters"]["transports"] == ["tcp", "websocket", "polling"]
    cellular = (await api.get(query="?network=cellular"))[1]["parameters"]
    differs = {key for key in cellular if cellular[key] != body["parameters"][key]}
    assert differs == {"connect_timeout_ms", "heartbeat_timeout_ms", "timeout_max_ms"}
    assert cellular["connect_timeout_ms"] == api.region.spec.client.cellular.connect_timeout_ms
    ticket = read(api.keys, body["placement"].encode())
    assert ticket == Ticket("americas", "alice", 3)


async def test_quic_is_named_first_where_the_region_has_it(api: Api) -> None:
    await api.holder.offer(api.policy())
    client = api.region.spec.client.model_copy(update={"quic": True})
    spec = api.region.spec.model_copy(update={"client": client})
    api.server._parameters = _parameters(api.region.model_copy(update={"spec": spec}))
    parameters = (await api.get(query="?network=wifi"))[1]["parameters"]
    assert parameters["transports"] == ["quic", "tcp", "websocket", "polling"]
    assert "quic" not in parameters


async def test_only_listed_proxies_may_name_the_client(api: Api) -> None:
    await api.holder.offer(api.policy())
    shard = (await api.get(X_Forwarded_For="8.8.8.8, 1.0.16.1"))[1]["shard"]
    assert shard == "asia"  # the nearest hop that is not ours; what lies before it may be made up
    assert (await api.get(X_Forwarded_For="8.8.8.8, 127.0.0.9"))[1]["shard"] == "americas"
    api.server._proxies = []
    assert (await api.get(X_Forwarded_For="8.8.8.8"))[1]["shard"] == "europe"


async def test_an_address_override_needs_an_admin_token(api: Api) -> None:
    await api.holder.offer(api.policy())
    assert (await api.get(X_Im_Address="8.8.8.8"))[0] == 403
    status, body = await api.get(api.token(admin=True), X_Im_Address="8.8.8.8")
    assert (status, body["shard"]) == (200, "americas")
    assert (await api.get(api.token(admin=True), X_Im_Address="x"))[0] == 400


@pytest.mark.parametrize("token", ["", "x.y", "rubbish"])
async def test_nobody_without_a_token_is_told_anything(api: Api, token: str) -> None:
    await api.holder.offer(api.policy())
    status, body = await api.get(token)
    assert status == 401
    assert body["error"]["code"] == "unauthenticated"
    assert token not in body["error"]["message"] or not token
    assert (await api.get(api.token(for_ms=-LEEWAY_MS)))[0] == 401


async def test_without_a_policy_it_says_when_to_ask_again(api: Api) -> None:
    status, body = await api.get()
    assert status == 503
    assert body["error"]["retry_after_ms"] > 0


async def test_the_last_policy_is_served_stale_even_after_a_restart(api: Api) -> None:
    await api.holder.offer(api.policy(epoch=9))
    restarted = PolicyHolder(api.folder / "policy.json", RealDisk())
    api.server._holder = restarted
    status, body = await api.get()
    assert (status, body["policy_epoch"], body["stale"]) == (200, 9, True)
    assert not await restarted.offer(api.policy(epoch=8))  # never a lower epoch than one served
    assert (await api.get())[1]["policy_epoch"] == 9


async def test_failed_and_cordoned_idcs_are_treated_as_the_policy_says(api: Api) -> None:
    await api.holder.offer(api.policy(fra=IdcState.FAILED))
    assert (await api.get())[1]["idcs"] == ["iad", "sin"]
    await api.holder.offer(api.policy(epoch=4, fra=IdcState.CORDONED))
    assert (await api.get())[1]["idcs"] == ["iad", "sin"]
    assert (await api.get(query="?last=fra-gw-1"))[1]["idcs"][0] == "fra"


async def test_a_minority_ranks_itself_last(api: Api) -> None:
    await api.holder.offer(api.policy())
    api.minority = True
    assert (await api.get())[1]["idcs"] == ["iad", "sin", "fra"]


async def test_reports_count_once_a_client(api: Api) -> None:
    body = json.dumps({"reports": [{"gateway": "iad-gw-1", "idc": "iad", "failure": "refused"}]})
    assert await api.report(body) == 204
    assert await api.report(body) == 429
    assert api.wait_ms >= EVERY_S * 1000
    assert await api.report(body, "bob") == 204
    assert api.reports.counts(api.clock.now())["iad"] == 2


async def test_a_gateway_that_has_no_room_accuses_nobody(api: Api) -> None:
    """It is there: who takes a lost IDC's clients must not come to look lost itself."""
    busy = {"gateway": "iad-gw-1", "idc": "iad", "failure": "overloaded"}
    gone = {"gateway": "sin-gw-1", "idc": "sin", "failure": "timeout"}
    assert await api.report(json.dumps({"reports": [busy, gone]})) == 204
    counts = api.reports.counts(api.clock.now())
    assert (counts.get("iad", 0), counts["sin"]) == (0, 1)


@pytest.mark.parametrize(
    "body",
    [
        "",
        "[]",
        "{}",
        '{"reports": [1]}',
        '{"reports": {"a": 1}}',
        '{"reports": [{"idc": ["iad"]}]}',
        '{"reports": [{"idc": null}]}',
        '{"reports": [{"idc": "iad", "gateway": 7}]}',
    ],
)
async def test_rubbish_costs_its_sender_a_400(api: Api, body: str) -> None:
    assert await api.report(body) == 400
    assert await api.report("x" * 20_000) == 413


async def test_unknown_paths_and_networks_are_refused(api: Api) -> None:
    await api.holder.offer(api.policy())
    assert (await api.get(query="?network=pigeon"))[0] == 400
    async with api.http.get(f"{api.url}/v1/else") as response:
        assert response.status == 404
        assert (await response.json())["error"]["code"] == "not_found"


@pytest.mark.parametrize("field", ["connect_ms", "heartbeat_ms"])
async def test_what_a_client_says_that_things_took_is_a_number_of_milliseconds(
    api: Api, field: str
) -> None:
    await api.holder.offer(api.policy())
    for good in ("0", "60000"):
        assert (await api.get(query=f"?network=cellular&{field}={good}"))[0] == 200
    for bad in ("", "-1", "60001", "1e3", "1.5", "x", "%D9%A3", "9" * 5_000):
        status, body = await api.get(query=f"?network=cellular&{field}={bad}")
        assert status == 400
        assert body["error"]["message"].startswith(f"{field}: expected whole milliseconds")
    # What a newer SDK says is left aside.
    assert (await api.get(query="?network=cellular&tls_ms=x"))[0] == 200


async def test_a_client_that_does_not_trust_the_ca_gets_nothing(api: Api) -> None:
    connector = aiohttp.TCPConnector(ssl=ssl.create_default_context())
    async with aiohttp.ClientSession(connector=connector) as stranger:
        with pytest.raises(aiohttp.ClientConnectorCertificateError):
            await stranger.get(f"{api.url}/v1/gateways")


async def test_a_report_nested_without_end_and_one_cut_off_are_the_client_s_own_trouble(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    assert await api.report("[" * 10_000) == 400
    head = (
        "POST /v1/reports HTTP/1.1\r\nHost: ipconf\r\nContent-Length: 100\r\n"
        f"Authorization: Bearer {api.token('carol')}\r\n\r\n{{"
    )
    port = int(api.url.rpartition(":")[2])
    tls = client_ssl_context(api.pki_dir / "ca.pem")
    _, writer = await asyncio.open_connection("127.0.0.1", port, ssl=tls)
    writer.write(head.encode())
    await writer.drain()
    await api.get()  # by then the request has begun to be read
    writer.transport.abort()
    await asyncio.sleep(0.1)
    assert [record for record in caplog.records if record.levelname == "ERROR"] == []


async def test_a_report_that_is_too_large_is_documented_too(api: Api) -> None:
    assert await api.report("x" * 20_000) == 413
