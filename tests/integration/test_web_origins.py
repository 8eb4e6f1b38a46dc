"""A page of another origin asks ipconf and speaks to a gateway itself, in a real browser that
trusts the region's certificate; and only a page that the region file names."""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from imcore import frame
from imcore.pki import load_region_keys
from imcore.runtime import SystemClock
from imcore.tls import client_ssl_context
from imcore.tokens import Claims, mint
from imctl.testing.browser import Driven
from imctl.testing.lab import until
from imctl.testing.onenode import running
from services.node.node import Node

NAMED = "https://chat.example.com"
# Asks ipconf, connects to the gateway that it names, and says what the gateway says first.
ASK = """(async () => {
  const answer = await fetch(%(ipconf)s + '/v1/gateways',
    {headers: {Authorization: 'Bearer ' + %(token)s}});
  const {host, port} = (await answer.json()).gateways[0];
  const socket = new WebSocket(`wss://${host}:${port}/`);
  socket.binaryType = 'arraybuffer';
  const said = new Promise((resolve, reject) => {
    socket.onmessage = event => resolve([...new Uint8Array(event.data)]);
    socket.onerror = () => reject(new Error('no WebSocket'));
  });
  await new Promise(resolve => { socket.onopen = resolve; });
  socket.send(new Uint8Array(%(preface)s));
  return await said;
})()"""


def allowing(*origins: str) -> Any:
    def edit(spec: dict[str, Any]) -> None:
        spec["client"] = {**spec.get("client", {}), "web_origins": list(origins)}

    return edit


def token(folder: Path, uid: str = "ann") -> str:
    keys = load_region_keys(folder / "pki")
    return mint(keys, Claims(uid, "web", SystemClock().wall_ms() + 600_000))


def ipconf_of(node: Node) -> str:
    return f"https://{node.config.idc.endpoints.ipconf}"


async def test_only_origins_that_are_named_are_told_so(tmp_path: Path) -> None:
    async with running(tmp_path, False, edit=allowing(NAMED)) as node:
        tls = client_ssl_context(tmp_path / "pki" / "ca.pem")
        url = f"{ipconf_of(node)}/v1/gateways"
        bearer = {"Authorization": f"Bearer {token(tmp_path)}"}
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http:
            for origin in (NAMED, "https://evil.example.com", "null", f"{NAMED}.evil.com"):
                asked = {
                    "Origin": origin,
                    "Access-Control-Request-Method": "GET",
                    "Access-Control-Request-Headers": "authorization",
                }
                for answer in (
                    await http.options(url, headers=asked),
                    await http.get(url, headers={**bearer, "Origin": origin}),
                    await http.get(url, headers={"Origin": origin}),  # an error is read too
                ):
                    told = answer.headers.get("Access-Control-Allow-Origin", "")
                    assert told == (NAMED if origin == NAMED else ""), (origin, answer)
                    assert "Origin" in answer.headers["Vary"]
                    assert "Access-Control-Allow-Credentials" not in answer.headers
            before = await http.options(url, headers=asked | {"Origin": NAMED})
            assert before.status == 204
            assert before.headers["Access-Control-Allow-Headers"] == "authorization"
            other = {"Authorization": f"Bearer {token(tmp_path, 'bob')}"}

            async def answered() -> bool:
                answer = await (await http.get(url, headers=other)).json()
                assert "web_origins" not in answer.get("parameters", ())
                return "parameters" in answer

            await until(answered, 20, "ipconf names no gateway")


async def test_where_none_is_named_nothing_is_said_of_any(tmp_path: Path) -> None:
    async with running(tmp_path, False) as node:
        tls = client_ssl_context(tmp_path / "pki" / "ca.pem")
        url = f"{ipconf_of(node)}/v1/gateways"
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=tls)) as http:
            answer = await http.get(url, headers={"Origin": NAMED})
            assert not {name for name in answer.headers if name.startswith("Access-Control")}
            asked = {"Origin": NAMED, "Access-Control-Request-Method": "GET"}
            assert (
                await http.options(f"{ipconf_of(node)}/v1/gateways", headers=asked)
            ).status == 405


@asynccontextmanager
async def blank_page() -> AsyncIterator[str]:
    """The origin of a server that has an empty page."""

    async def page(_: web.Request) -> web.Response:
        return web.Response(text="<!DOCTYPE html><title>chat</title>", content_type="text/html")

    app = web.Application()
    app.router.add_get("/", page)
    runner = web.AppRunner(app, access_log=None)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()


def trusting(certificate: Path) -> str:
    """A browser with this flag takes this key for good, and checks all others."""
    key = x509.load_pem_x509_certificate(certificate.read_bytes()).public_key()
    der = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    pin = base64.b64encode(hashlib.sha256(der).digest()).decode()
    return f"--ignore-certificate-errors-spki-list={pin}"


@pytest.mark.parametrize("named", [True, False])
async def test_a_page_of_another_origin_in_a_browser(
    chromium: str, tmp_path: Path, named: bool
) -> None:
    async with (
        blank_page() as origin,
        running(tmp_path, False, edit=allowing(origin if named else NAMED)) as node,
        Driven(
            chromium, tmp_path / "profile", trusting(tmp_path / "pki" / f"{node.idc}.pem")
        ) as browser,
    ):
        page = await browser.open(origin)
        await browser.until(page, "document.title === 'chat'")
        script = ASK % {
            "ipconf": json.dumps(ipconf_of(node)),
            "token": json.dumps(token(tmp_path)),
            "preface": list(frame.client_preface()),
        }
        if named:
            said = bytes(await browser.run(page, script))
            frame.parse_server_preface(said[: frame.SERVER_PREFACE_BYTES])
        else:
            with pytest.raises(RuntimeError, match="Failed to fetch"):
                await browser.run(page, script)
