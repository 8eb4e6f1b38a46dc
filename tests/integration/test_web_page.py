"""The chat page in a real browser, against a real IDC."""

from __future__ import annotations

import asyncio
import os
import signal
import webbrowser
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from imcore.limits import CONTENT_BYTES_MAX
from imcore.pki import load_region_keys
from imcore.runtime import SystemClock
from imcore.tokens import Claims, mint
from imctl.commands import web
from imctl.testing.browser import Driven
from imctl.testing.lab import until
from imctl.testing.onenode import running
from imctl.web import serve
from imctl.web.serve import Pages
from services.node.node import Node
from services.state.server import StateServer

SHOWN = "[...document.querySelectorAll('#messages li')].map(li => li.firstChild.textContent)"


@asynccontextmanager
async def pages_of(node: Node, folder: Path, uid: str) -> AsyncIterator[Pages]:
    keys = load_region_keys(folder / "pki")
    token = mint(keys, Claims(uid, "web", SystemClock().wall_ms() + 600_000))
    session: dict[str, str | int] = {
        "uid": uid,
        "device": "web",
        "token": token,
        "region": "lab",
        "content_bytes_max": CONTENT_BYTES_MAX,
    }
    ipconf = f"https://{node.config.idc.endpoints.ipconf}"
    pages = Pages(session, ["https://127.0.0.1:1", ipconf], folder / "pki" / "ca.pem")
    await pages.start(0)
    try:
        yield pages
    finally:
        await pages.stop()


async def say(browser: Driven, page: str, text: str) -> None:
    await browser.run(
        page,
        f"document.getElementById('text').value = {text!r};"
        "document.getElementById('send').requestSubmit()",
    )


async def test_two_people_chat_in_browsers_through_reload_and_restart(
    chromium: str, tmp_path: Path
) -> None:
    async with (
        running(tmp_path, False) as node,
        pages_of(node, tmp_path, "ann") as ann,
        pages_of(node, tmp_path, "bob") as bob,
        Driven(chromium, tmp_path / "profile") as browser,
    ):
        hers, his = await browser.open(ann.url), await browser.open(bob.url)
        for page, whom in ((hers, "bob"), (his, "ann")):
            state = "document.getElementById('state')?.textContent.startsWith('connected')"
            await browser.until(page, state)
            await browser.run(
                page,
                f"document.getElementById('with').value = '{whom}';"
                "document.getElementById('open').requestSubmit()",
            )
        for number in range(5):
            await say(browser, hers, f"a{number}")
            await say(browser, his, f"b{number} {'x' * 3000 if number == 4 else ''}".strip())
        for page in (hers, his):
            await browser.until(page, f"{SHOWN}.length === 10")
        order = await browser.run(hers, SHOWN)
        assert order == await browser.run(his, SHOWN)
        assert [text for text in order if text[0] == "a"] == [f"a{n}" for n in range(5)]

        # Every connection breaks; what is sent meanwhile is kept, over a reload too.
        assert isinstance(node.state, StateServer)
        node.state.close_all("shutdown")
        await say(browser, hers, "<b>kept</b>")
        await browser.run(hers, "window.old = true")
        await browser.reload(hers)
        for page in (hers, his):
            await browser.until(
                page, "!window.old && document.querySelector('#list button') !== null"
            )
            await browser.run(page, "document.querySelector('#list button').click()")
            await browser.until(page, f"{SHOWN}.at(-1) === '<b>kept</b>'")
            assert await browser.run(page, SHOWN) == [*order, "<b>kept</b>"]
            assert await browser.run(page, "document.querySelector('b') === null")


def largest(spec: dict[str, Any]) -> None:
    spec["messages"] = {"content_bytes_max": CONTENT_BYTES_MAX}


async def test_the_largest_content_arrives_and_larger_is_not_taken(
    chromium: str, tmp_path: Path
) -> None:
    async with (
        running(tmp_path, False, edit=largest) as node,
        pages_of(node, tmp_path, "ann") as ann,
        Driven(chromium, tmp_path / "profile") as browser,
    ):
        page = await browser.open(ann.url)
        state = "document.getElementById('state')?.textContent.startsWith('connected')"
        await browser.until(page, state)
        await browser.run(
            page,
            "document.getElementById('with').value = 'bob';"
            "document.getElementById('open').requestSubmit()",
        )
        most = "é" * (CONTENT_BYTES_MAX // 2)
        await say(browser, page, most + "é")
        why = await browser.run(page, "document.getElementById('why').textContent")
        assert why == f"A message holds at most {len(most) * 2} bytes, not {len(most) * 2 + 2}."
        assert await browser.run(page, "document.getElementById('text').value") == most + "é"

        await say(browser, page, most)
        await say(browser, page, "next")
        await browser.until(page, "document.querySelectorAll('#messages li').length === 2")
        notes = "[...document.querySelectorAll('#messages small')].map(e => e.textContent)"
        await browser.until(page, f"!{notes}.includes('sending')")
        assert await browser.run(page, SHOWN) == [most, "next"]
        assert await browser.run(page, "document.getElementById('why').textContent") == ""


async def test_only_who_knows_the_address_and_only_to_gateways(tmp_path: Path) -> None:
    async with running(tmp_path, False) as node, pages_of(node, tmp_path, "ann") as pages:
        base = pages.url.removesuffix(pages.path)
        async with aiohttp.ClientSession() as http:
            for path in ("/", "/session", f"{pages.path}..%2fserve.py", f"{pages.path}no.js"):
                assert (await http.get(base + path)).status == 404
            assert (await http.get(f"{pages.url}connect?host=127.0.0.1&port=1")).status == 403

            async def named() -> bool:
                answer = await (await http.get(f"{pages.url}gateways")).json()
                return [row["idc"] for row in answer.get("gateways", ())] == [node.idc]

            await until(named, 30, "ipconf names no gateway")


async def test_a_gateway_that_never_answers_holds_the_page_up_for_seconds(
    pki_dir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an IDC that is paused the kernel takes connections, and nobody shakes hands."""
    monkeypatch.setattr(serve, "CONNECT_S", 0.2)
    came: list[asyncio.StreamWriter] = []

    async def silent(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        came.append(writer)

    session: dict[str, str | int] = {"uid": "ann", "device": "web", "token": "t"}
    pages = Pages(session, [], pki_dir / "ca.pem")
    paused = await asyncio.start_server(silent, "127.0.0.1", 0)
    port = paused.sockets[0].getsockname()[1]
    pages._gateways.add(("127.0.0.1", port))
    await pages.start(0)
    try:
        async with aiohttp.ClientSession() as http, asyncio.timeout(10):
            answer = await http.get(f"{pages.url}connect?host=127.0.0.1&port={port}")
            said = await answer.text()
            assert (answer.status, said) == (502, f"127.0.0.1:{port} does not answer in time")
            assert len(came) == 1
    finally:
        await pages.stop()
        for writer in came:
            writer.close()
        paused.close()


async def test_what_a_browser_is_started_with_is_of_use_once(
    pki_dir: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Everybody on the machine reads its arguments (`ps`), for as long as it runs."""
    opened: list[str] = []
    session: dict[str, str | int] = {"uid": "ann", "device": "web", "token": "t"}
    pages = Pages(session, [], pki_dir / "ca.pem")
    monkeypatch.setattr(webbrowser, "open", opened.append)
    serving = asyncio.ensure_future(web._serve(pages, 0, browser=True))
    async with asyncio.timeout(20), aiohttp.ClientSession() as http:
        while not opened:  # noqa: ASYNC110 - the command's own loop
            await asyncio.sleep(0.02)
        assert pages.url in capsys.readouterr().out
        assert pages.path.strip("/") not in opened[0]
        page = await http.get(opened[0])
        assert (page.status, str(page.url)) == (200, pages.url)
        again = await http.get(opened[0])
        assert again.status == 410 and "in the terminal" in await again.text()
        os.kill(os.getpid(), signal.SIGTERM)
        await serving
