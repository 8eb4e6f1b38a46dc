"""All clients of an IDC come back at once, over real sockets: `python -m benchmarks.storm`.

A process holds an ipconf and a gateway, another one the clients. A client asks ipconf over a new
HTTPS connection, dials the gateway over TLS, connects and stays; turned away, it waits as the SDK's
core says. The clients' process does some handshakes at a time, as one processor is all they have.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import resource
import ssl
import subprocess
import sys
import tempfile
import time
from asyncio import FIRST_COMPLETED
from collections import Counter
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import uvloop

from imcore import pki
from imcore.pki import load_region_keys
from imcore.proto import client_pb2 as pb
from imcore.region.model import Limits
from imcore.runtime import SystemClock
from imcore.tls import client_ssl_context, gateway_ssl_context
from imcore.tokens import Claims, mint
from services.gateway.config import GatewayConfig
from services.gateway.testing import FrameClient, dial
from services.node.testing_ipconf import IpconfSite
from services.policy.document import IdcState
from services.sdk.core.reconnect import Lost, Reconnect, Where
from services.state.testing import Front

CLIENTS = 10_000
CONNECTS_PER_S = 100
LOOKUPS_PER_S = 120
HANDSHAKES = 500  # of the clients' process, at a time
TOKEN_MS = 3_600_000
_GIVEN_UP_S = 5.0


# --------------------------------------------------------------------------------- the servers


async def serve(folder: Path, connects_per_s: float, lookups_per_s: int) -> None:
    """Says where it listens, and, after each line that it is told, how it is."""
    pki_dir = folder / "pki"
    tls = gateway_ssl_context(pki_dir, "fra"), client_ssl_context(pki_dir / "ca.pem")
    patient = GatewayConfig(
        idle_ms=600_000, first_frame_ms=10_000, connects_per_s=connects_per_s,
        connections_of_address=20_000,
    )  # fmt: skip
    async with Front(load_region_keys(pki_dir), tls, limits=patient) as front:
        [gateway] = front.gateways
        site = IpconfSite(folder, pki_dir, Limits(lookups_per_s=lookups_per_s), gateway.port)
        await site.start()
        await site.holder.offer(site.policy(iad=IdcState.FAILED, sin=IdcState.FAILED))
        print(site.url, flush=True)
        while await asyncio.to_thread(sys.stdin.readline):
            usage = resource.getrusage(resource.RUSAGE_SELF)
            counters = gateway.counters
            figures = {
                "connected": front.state.connected_count(),
                "refused": counters.refused,
                "cpu_s": usage.ru_utime + usage.ru_stime,
                "peak_mib": usage.ru_maxrss / 1024,
            }
            print(json.dumps(figures), flush=True)
        await site.stop()


# --------------------------------------------------------------------------------- the clients


class Clients:
    def __init__(self, url: str, pki_dir: Path) -> None:
        self._url = url
        self._tls: ssl.SSLContext = client_ssl_context(pki_dir / "ca.pem")
        self._keys = load_region_keys(pki_dir)
        self._clock = SystemClock()
        self._rng = random.Random(1)
        self._hands = asyncio.Semaphore(HANDSHAKES)
        self._http: aiohttp.ClientSession
        self._stay: list[FrameClient] = []
        self.connected: list[float] = []  # when
        self.asked: Counter[str] = Counter()
        self.answered_ms: list[float] = []

    async def run(self, count: int) -> float:
        """Until all are connected; returns the seconds it took."""
        connector = aiohttp.TCPConnector(ssl=self._tls, limit=0, force_close=True)
        timeout = aiohttp.ClientTimeout(total=_GIVEN_UP_S)
        async with aiohttp.ClientSession(connector=connector, timeout=timeout) as self._http:
            begun = time.monotonic()
            await asyncio.gather(*(self._client(number, begun) for number in range(count)))
        return max(self.connected)

    async def _client(self, number: int, begun: float) -> None:
        uid = f"u{number}"
        token = mint(self._keys, Claims(uid, "phone", self._clock.wall_ms() + TOKEN_MS))
        core = Reconnect(self._rng)
        plan = core.lost(Lost("lost", lived_ms=60_000))
        while plan.where is Where.SAME:  # the gateway that is gone
            plan = core.lost(Lost("refused"))
        while True:
            await asyncio.sleep(plan.delay_ms / 1000)
            async with self._hands:
                lost = await self._attempt(token)
            if lost is None:
                self.connected.append(time.monotonic() - begun)
                return
            self.asked[lost.reason] += 1
            plan = core.lost(lost)

    async def _attempt(self, token: str) -> Lost | None:
        """None: it is connected, and stays."""
        begun = time.monotonic()
        headers = {"Authorization": f"Bearer {token}"}
        try:
            async with self._http.get(f"{self._url}/v1/gateways", headers=headers) as answer:
                document = await answer.json()
        except (aiohttp.ClientError, TimeoutError, OSError):
            return Lost("no_answer")
        self.answered_ms.append((time.monotonic() - begun) * 1000)
        if answer.status != 200:
            return Lost("turned away", retry_after_ms=document["error"]["retry_after_ms"])
        port = document["gateways"][0]["port"]
        try:
            async with asyncio.timeout(_GIVEN_UP_S):
                client = await dial(port, self._tls)
                connect = pb.Connect(token=token.encode(), connection_epoch=1)
                response = client.send(pb.Request(connect=connect))
                await asyncio.wait((response, client.closed), return_when=FIRST_COMPLETED)
        except (TimeoutError, OSError):
            return Lost("timeout")
        if client.closed.done():
            close = client.events.get_nowait().close if client.events.qsize() else pb.Close()
            return Lost(close.reason or "lost", retry_after_ms=close.retry_after_ms)
        if (error := response.result().error).code:
            return Lost("unavailable", retry_after_ms=error.retry_after_ms)
        self._stay.append(client)
        return None


async def storm(
    clients: int, connects_per_s: float = CONNECTS_PER_S, lookups_per_s: int = LOOKUPS_PER_S
) -> dict[str, Any]:
    """What came of it."""
    with tempfile.TemporaryDirectory(prefix="bench-storm-") as name:
        folder = Path(name)
        pki.init(folder / "pki", {"fra": ("127.0.0.1",)}, datetime.now(UTC))
        command = [sys.executable, "-m", "benchmarks.storm", "--serve", name]
        command += ["--connects", str(connects_per_s), "--lookups", str(lookups_per_s)]
        server = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert server.stdin is not None and server.stdout is not None
        try:
            url = (await server.stdout.readline()).decode().strip()
            if not url:
                raise SystemExit("the servers did not start")
            here = Clients(url, folder / "pki")
            took_s = await here.run(clients)
            server.stdin.write(b"how are you?\n")
            there = json.loads(await server.stdout.readline())
        finally:
            server.stdin.close()
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(server.wait(), 10)
            if server.returncode is None:
                server.kill()
                await server.wait()
    by_second = Counter(int(at) for at in here.connected)
    here.answered_ms.sort()
    return {
        "clients": clients,
        "took_s": took_s,
        "most_in_a_second": max(by_second.values()),
        "answer_p99_ms": here.answered_ms[int(len(here.answered_ms) * 0.99)],
        "answers": len(here.answered_ms),
        "again": dict(here.asked),
        **there,
    }


def enough_files(clients: int) -> None:
    """Raises SystemExit when this machine does not allow for as many open files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = clients + 500
    if soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise SystemExit(f"{clients} connections need {wanted} open files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=CLIENTS)
    parser.add_argument("--connects", type=float, default=CONNECTS_PER_S)
    parser.add_argument("--lookups", type=int, default=LOOKUPS_PER_S)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    enough_files(options.clients)
    if options.serve:
        uvloop.run(serve(options.serve, options.connects, options.lookups))
        return
    found = uvloop.run(storm(options.clients, options.connects, options.lookups))
    print(
        f"{found['clients']} clients at once, {options.connects:g} connects/s: all connected after "
        f"{found['took_s']:.1f} s, at most {found['most_in_a_second']} in a second; "
        f"{found['answers']} answers of ipconf, p99 {found['answer_p99_ms']:.0f} ms; again for "
        f"{found['again']}; servers: {found['cpu_s']:.1f} s CPU, {found['peak_mib']:.0f} MiB; "
        f"load {os.getloadavg()[0]:.1f}",
        flush=True,
    )


if __name__ == "__main__":
    main()
