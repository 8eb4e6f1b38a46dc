"""What a client that arrives costs: ipconf's answers, and the sync of a new device.

One IDC in one process, over TLS; this process asks. Answers of ipconf: as many connections as the
SDK's shared client keeps, each asks again when it is answered, for another user; then a new
connection for each question, as clients have that come one by one. A new device: of a user with
many conversations, in each of which something was said; with the SDK, until it shows all of them.
"""

from __future__ import annotations

import asyncio
import ssl
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import aiohttp

from benchmarks.client import Client as FramesClient
from benchmarks.deployment import Failed, Process, gateways, one_idc, running
from imcore.pki import load_region_keys
from imcore.proto import client_pb2 as pb
from imcore.tls import client_ssl_context
from imcore.tokens import Claims, mint
from imcore.words import direct_conversation
from services.sdk import Client

ASKING = 16  # connections
USERS = 1_000
SENDS_PER_S = 150  # of one connection; a gateway takes 200
ANSWERED_S, SHOWN_S = 20.0, 60.0
BUSY = 1_000_000

Token = Callable[[str, str], str]  # of a user and a device


async def until_answered(url: str, context: ssl.SSLContext, token: Token) -> None:
    """A gateway is named a moment after it serves, once ipconf has seen its lease."""
    headers = {"Authorization": f"Bearer {token('me', 'phone')}"}
    connector = aiohttp.TCPConnector(ssl=context)
    async with aiohttp.ClientSession(connector=connector) as http, asyncio.timeout(ANSWERED_S):
        while True:
            async with http.get(f"{url}/v1/gateways", headers=headers) as response:
                if response.status == 200:
                    return
            await asyncio.sleep(0.3)


async def lookups(
    node: Process, url: str, context: ssl.SSLContext, token: Token, seconds: float, anew: bool
) -> None:
    tokens = [token(f"u{number}", "phone") for number in range(USERS)]
    connector = aiohttp.TCPConnector(ssl=context, limit=ASKING, force_close=anew)
    answers, taken_s = 0, 0.0
    async with aiohttp.ClientSession(connector=connector) as http:
        begun, cpu = time.monotonic(), node.cpu_s()

        async def ask(first: int) -> None:
            nonlocal answers, taken_s
            number = first
            while time.monotonic() - begun < seconds:
                number += ASKING
                asked = time.monotonic()
                headers = {"Authorization": f"Bearer {tokens[number % USERS]}"}
                async with http.get(f"{url}/v1/gateways", headers=headers) as response:
                    if response.status != 200:
                        raise Failed(f"ipconf answers {response.status}: {await response.text()}")
                    await response.read()
                answers += 1
                taken_s += time.monotonic() - asked

        await asyncio.gather(*(ask(number) for number in range(ASKING)))
        took_s, cpu = time.monotonic() - begun, node.cpu_s() - cpu
    print(
        f"  ipconf, {'a new connection each' if anew else f'{ASKING} connections'}: "
        f"{answers / took_s:.0f} answers/s, {taken_s / answers * 1000:.1f} ms each, "
        f"{cpu / answers * 1e6:.0f} us CPU of the node",
        flush=True,
    )


async def fill(address: tuple[str, int], context: ssl.SSLContext, token: Token, count: int) -> None:
    """A message of ``me`` in as many conversations."""
    client = FramesClient(0, "me", "phone", lambda *_: None)
    await client.connect(*address, context, token("me", "phone").encode())
    begun = time.monotonic()
    for number in range(count):
        await asyncio.sleep(max(0.0, begun + number / SENDS_PER_S - time.monotonic()))
        send = pb.Send(
            conversation=direct_conversation("me", f"friend{number}"), outbox="bench", cid=1,
            floor=1, content=b"hello",
        )  # fmt: skip
        await client.ask(pb.Request(send=send))
    client.close()


async def new_device(node: Process, url: str, ca: Path, token: Token, count: int) -> None:
    names = [direct_conversation("me", f"friend{number}") for number in range(count)]
    begun, cpu, own = time.monotonic(), node.cpu_s(), time.process_time()
    async with Client(token("me", "tablet"), [url], ca) as client:
        async with asyncio.timeout(SHOWN_S):
            while not all(client.view(name) for name in names):  # noqa: ASYNC110
                await asyncio.sleep(0.02)
        took_s = time.monotonic() - begun
    print(
        f"  a new device of a user with {count} conversations shows all after {took_s:.2f} s; "
        f"{(node.cpu_s() - cpu) * 1000:.0f} ms CPU of the node, "
        f"{(time.process_time() - own) * 1000:.0f} ms of the SDK",
        flush=True,
    )


async def run(quick: bool) -> None:
    seconds, count = (2.0, 200) if quick else (5.0, 1_000)
    with tempfile.TemporaryDirectory(prefix="bench-arrivals-") as name:
        folder = Path(name)
        # It answers as fast as it can.
        region = one_idc(folder, lookups_per_s=BUSY, address_lookups_per_s=BUSY)
        keys = load_region_keys(folder / "pki")

        def token(uid: str, device: str) -> str:
            expires = time.time_ns() // 1_000_000 + 3_600_000
            return mint(keys, Claims(uid, device, expires))

        ca = folder / "pki" / "ca.pem"
        context = client_ssl_context(ca)
        url = f"https://{region.idc('fra').endpoints.ipconf}"
        [(host, port)] = gateways(region).values()
        async with running(folder, region, plain=False) as processes:
            node = processes["fra"]
            await until_answered(url, context, token)
            for anew in (False, True):
                await lookups(node, url, context, token, seconds, anew)
            await fill((host, port), context, token, count)
            for _ in range(2):
                await new_device(node, url, ca, token, count)
