"""The SDK on networks as they are: nothing is lost, nothing is shown twice, in order."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from imcore.tls import gateway_ssl_context
from imcore.words import ClientKey
from services.linkproxy.model import LinkSpec, Mode
from services.linkproxy.profiles import PROFILES, faster, play
from services.linkproxy.proxy import Fault, LinkProxy
from services.sdk import Options
from services.sdk.testing.app import App, eventually
from services.sdk.testing.scripted import Region

CHAT = "d:ann:bob"
FASTER = {"nat": 100.0}  # it forgets after 0.6 s: heartbeats have to keep the connection
FASTER_ELSE = 25.0
TALKS_EVERY_S = {"nat": 0.7}
PLAYED_S = 2.8
PARAMETERS = {
    "heartbeat_ms": 500,
    "heartbeat_timeout_ms": 2_500,
    "connect_timeout_ms": 4_000,
    "backoff_base_ms": 20,
    "backoff_max_ms": 300,
    "idle_pull_ms": 2_000,
}


@asynccontextmanager
async def behind(pki_dir: Path) -> AsyncIterator[tuple[Region, LinkProxy]]:
    """A region with one gateway, and the only way to it."""
    region = Region(gateway_ssl_context(pki_dir, "fra"), parameters=dict(PARAMETERS))
    await region.start("fra")
    fra = region.idcs["fra"]
    address = ("127.0.0.1", fra.port)
    specs = {("ann", "fra"): LinkSpec(), ("fra", "ann"): LinkSpec()}
    proxy = LinkProxy({"ann": address, "fra": address}, specs, random.Random(1))
    fra.port = (await proxy.listen({}))["ann", "fra"][1]
    try:
        yield region, proxy
    finally:
        await proxy.close()
        await region.stop()


async def live_with(name: str, pki_dir: Path) -> None:
    """A client talks and is talked to over this network. App asserts: nothing is shown twice."""
    async with behind(pki_dir) as (region, proxy):
        fra = region.idcs["fra"]
        profile = faster(PROFILES[name], FASTER.get(name, FASTER_ELSE))
        playing = asyncio.create_task(play(proxy, "ann", "fra", profile))
        said: list[bytes] = []
        sends: list[asyncio.Task[object]] = []
        options = Options(start_timeout_ms=30_000)
        try:
            async with App(region, pki_dir / "ca.pem", options=options) as ann:
                until = asyncio.get_running_loop().time() + PLAYED_S
                while asyncio.get_running_loop().time() < until:
                    said += [b"ann %d" % len(sends), b"bob %d" % len(sends)]
                    sends.append(asyncio.create_task(ann.client.send(CHAT, said[-2])))
                    fra.accept(ClientKey("bob", "phone", "box", CHAT, len(sends)), said[-1])
                    await asyncio.sleep(TALKS_EVERY_S.get(name, 0.15))
                playing.cancel()
                proxy.apply(Fault("ann", "fra", Mode.PASS, True, LinkSpec()))
                await asyncio.gather(*sends)
                await eventually(lambda: len(ann.list) == len(said), 12.0)
                assert sorted(ann.list) == sorted(said)
                for who in (b"ann", b"bob"):  # each in his own order
                    own = [content for content in said if content.startswith(who)]
                    assert [content for content in ann.list if content.startswith(who)] == own
        finally:
            playing.cancel()


async def test_the_sdk_lives_with_every_network(pki_dir):
    """All at once, as each mostly waits."""
    async with asyncio.TaskGroup() as group:
        for name in PROFILES:
            group.create_task(live_with(name, pki_dir), name=name)


def test_a_faster_profile_has_the_same_delays():
    for profile in PROFILES.values():
        for slow, fast in zip(profile, faster(profile, 10.0), strict=True):
            assert fast.seconds == slow.seconds / 10
            assert fast.spec.delay_ms == slow.spec.delay_ms
            assert fast.spec.rate_kbit == slow.spec.rate_kbit
            assert (fast.spec.life_ms, fast.spec.idle_ms, fast.mode) == (
                slow.spec.life_ms / 10,
                slow.spec.idle_ms / 10,
                slow.mode,
            )
