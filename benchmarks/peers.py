"""Other messaging servers beside ours, in one run, by clients that are alike: mosquitto (MQTT, QoS
0 and 1) and ejabberd (XMPP), both as Debian packages them.

They promise less. Of these only ours has a message on disk before it is acked, keeps it, numbers
it, and pushes it to the sender's other devices; mosquitto answers QoS 1 from memory, ejabberd has
no archive here and answers nothing. So the ratios are the price of what is promised, and of Python.

For each: what a connection that stands takes, then rates that double until one is not kept up
with. The driver is this process, the server another (or more), plain TCP on a loopback address.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import random
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import NamedTuple

from benchmarks import table
from benchmarks.deployment import Failed, Process, gateways, one_idc, running, spawn
from benchmarks.peer_clients import Mqtt, OnNumber, Ours, PeerClient, Xmpp
from imcore.checker.latency import summarize
from imcore.pki import load_region_keys
from imcore.tokens import Claims, mint
from imctl.target.places import free_port

HOST = "127.0.0.1"
PAIRS = 50
SIZE = 120  # bytes of content
FIRST_PER_S = 500.0
LAST_PER_S = 64_000.0
FIXED_PER_S = 1_000.0  # at which latencies are compared
KEPT_UP = 0.97
SETTLE_S = 5.0
LATE_MS = 1_000.0  # of receipt at p99; above it a queue grows
CONNECTING = 20  # at a time
START_S = 30.0
OURS = "ours"

MakeClient = Callable[[str, OnNumber, OnNumber], PeerClient]


class Server(NamedTuple):
    port: int
    process: Process
    make: MakeClient


class Step(NamedTuple):
    offered: float  # messages a second
    received: float
    receipt: tuple[float, float]  # p50, p99 in ms, from when it was to be sent
    ack: tuple[float, float] | None
    cpu_us: float  # of the server, a message
    missing: int

    def kept_up(self) -> bool:
        enough = self.received >= KEPT_UP * self.offered
        return enough and not self.missing and self.receipt[1] < LATE_MS


# ----------------------------------------------------------------------------------- servers


@contextlib.asynccontextmanager
async def ours(folder: Path) -> AsyncIterator[Server]:
    region = one_idc(folder, connects_per_s=1_000_000)  # the others have no such limit
    keys = load_region_keys(folder / "pki")

    def token(uid: str) -> bytes:
        expires = time.time_ns() // 1_000_000 + 3_600_000
        return mint(keys, Claims(uid, "phone", expires)).encode()

    [(_, port)] = gateways(region).values()
    async with running(folder, region, plain=True) as processes:
        yield Server(
            port, processes["fra"], lambda name, came, taken: Ours(name, came, taken, token)
        )


@contextlib.asynccontextmanager
async def mosquitto(folder: Path, qos: int) -> AsyncIterator[Server]:
    port = free_port()
    (folder / "mosquitto.conf").write_text(
        f"listener {port} {HOST}\nallow_anonymous true\nmax_queued_messages 0\n"
        f"max_inflight_messages 0\npersistence true\npersistence_location {folder}/\n"
        "set_tcp_nodelay true\nuser root\n"
    )
    command = ["mosquitto", "-c", str(folder / "mosquitto.conf")]
    async with _started("mosquitto", command, folder, port) as process:
        yield Server(port, process, lambda name, came, taken: Mqtt(name, came, taken, qos))


@contextlib.asynccontextmanager
async def ejabberd(folder: Path) -> AsyncIterator[Server]:
    port = free_port()
    (folder / "ejabberd.yml").write_text(
        f"""\
hosts: [localhost]
loglevel: error
listen:
  - {{port: {port}, ip: "{HOST}", module: ejabberd_c2s, access: c2s, shaper: none}}
auth_method: [anonymous]
anonymous_protocol: sasl_anon
access_rules: {{c2s: {{allow: all}}}}
modules: {{}}
"""
    )
    command = ["erl", "+K", "true", "+P", "250000", "-noinput", "-pa", str(_ejabberd_code()[0])]
    command += ["-mnesia", "dir", f'"{folder}/spool"', "-s", "ejabberd"]
    env = {
        "EJABBERD_CONFIG_PATH": str(folder / "ejabberd.yml"),
        "EJABBERD_LOG_PATH": str(folder / "ejabberd.log"),
        "HOME": str(folder),
    }
    async with _started("ejabberd", command, folder, port, env) as process:
        yield Server(port, process, Xmpp)


def _ejabberd_code() -> list[Path]:
    """Where Debian puts it."""
    return sorted(Path("/usr/lib").glob("*/ejabberd-*/ebin"))


@contextlib.asynccontextmanager
async def _started(
    name: str, command: Sequence[str], folder: Path, port: int, env: dict[str, str] | None = None
) -> AsyncIterator[Process]:
    process = await spawn(name, command, folder / f"{name}.log", env or {})
    try:
        deadline = time.monotonic() + START_S
        while True:
            process.check()
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection(HOST, port)
                writer.close()
                break
            if time.monotonic() > deadline:
                raise Failed(f"{name} does not listen within {START_S:g} s")
            await asyncio.sleep(0.1)
        yield process
    finally:
        await process.stop()


Peer = Callable[[Path], contextlib.AbstractAsyncContextManager[Server]]


def _peers() -> dict[str, Peer]:
    """Those that are installed; a line for each that is not."""
    found: dict[str, Peer] = {OURS: ours}
    if shutil.which("mosquitto"):
        found["mosquitto, QoS 0"] = lambda folder: mosquitto(folder, 0)
        found["mosquitto, QoS 1"] = lambda folder: mosquitto(folder, 1)
    else:
        print("  not run: mosquitto (Debian: apt install mosquitto)")
    if shutil.which("erl") and _ejabberd_code():
        found["ejabberd"] = ejabberd
    else:
        print("  not run: ejabberd (Debian: apt install ejabberd)")
    return found


# -------------------------------------------------------------------------------------- load


class Load:
    """Pairs of users of one server, and what becomes of their messages. Times in seconds."""

    def __init__(self, server: Server, prefix: str) -> None:
        """``prefix``: of the names of its users, who are nobody else's."""
        self._server = server
        self._prefix = prefix
        self._rng = random.Random(1)
        self._due: list[float] = []
        self._received: dict[int, float] = {}
        self._acked: dict[int, float] = {}
        self._acks = False
        self.clients: list[PeerClient] = []

    async def connect(self, count: int) -> None:
        gate = asyncio.Semaphore(CONNECTING)

        async def one(number: int) -> None:
            async with gate:
                client = self._server.make(f"{self._prefix}{number}", self._came, self._taken)
                await client.connect(HOST, self._server.port)
                self.clients.append(client)

        begun = len(self.clients)
        await asyncio.gather(*(one(begun + number) for number in range(count)))
        self.clients.sort(key=lambda client: int(client.name[1:]))
        self._acks = self.clients[0].acks

    def close(self) -> None:
        for client in self.clients:
            client.close()
        self.clients.clear()

    def _came(self, number: int) -> None:
        self._received.setdefault(number, time.monotonic())

    def _taken(self, number: int) -> None:
        self._acked[number] = time.monotonic()

    async def step(self, rate: float, seconds: float) -> Step:
        gc.collect()
        first, cpu = len(self._due), self._server.process.cpu_s()
        ticking = asyncio.ensure_future(self._tick())
        begun = time.monotonic() + 0.05
        at = 0.0
        while (at := at + self._rng.expovariate(rate)) < seconds:
            due = begun + at
            while (left := due - time.monotonic()) > 0:  # noqa: ASYNC110 - a clock is waited for
                await asyncio.sleep(left)
            self._send(due)
            if len(self._due) % 16 == 0:
                await asyncio.sleep(0)
        sent_s = time.monotonic() - begun
        numbers = range(first, len(self._due))
        deadline = time.monotonic() + SETTLE_S
        while time.monotonic() < deadline and not all(n in self._received for n in numbers):  # noqa: ASYNC110
            await asyncio.sleep(0.02)
        ticking.cancel()
        receipts = [self._received[n] - self._due[n] for n in numbers if n in self._received]
        acks = [self._acked[n] - self._due[n] for n in numbers if n in self._acked]
        last = max((self._received[n] for n in numbers if n in self._received), default=begun)
        return Step(
            len(numbers) / sent_s,
            len(receipts) / max(sent_s, last - begun),
            _percentiles(receipts),
            _percentiles(acks) if self._acks else None,
            (self._server.process.cpu_s() - cpu) / max(1, len(numbers)) * 1e6,
            len(numbers) - len(receipts),
        )

    def _send(self, due: float) -> None:
        number = len(self._due)
        self._due.append(due)
        pair = self._rng.randrange(len(self.clients) // 2)
        left, right = self.clients[2 * pair : 2 * pair + 2]
        sender, receiver = (left, right) if number % 2 else (right, left)
        sender.send(receiver, number, SIZE)

    async def _tick(self) -> None:
        while True:
            for client in self.clients:
                await asyncio.sleep(1 / len(self.clients))
                client.tick()


def _percentiles(seconds: Sequence[float]) -> tuple[float, float]:
    found = summarize([round(value * 1e6) for value in seconds])
    return found.p50_ms, found.p99_ms


async def measure(name: str, peer: Peer, seconds: float, connections: int) -> dict[str, float]:
    """Its figures, for the table."""
    figures: dict[str, float] = {}
    with tempfile.TemporaryDirectory(prefix="bench-peers-") as folder:
        async with peer(Path(folder)) as server:
            load = Load(server, "i")
            before = _resident(server)
            await load.connect(connections)
            figures["KiB of a connection that stands"] = (
                (_resident(server) - before) / connections / 1024
            )  # fmt: skip
            load.close()
            await asyncio.sleep(1.0)
            load = Load(server, "u")
            await load.connect(2 * PAIRS)
            await load.step(FIRST_PER_S, 1.0)  # warm
            rate = FIRST_PER_S
            while rate <= LAST_PER_S:
                step = await load.step(rate, seconds)
                print(_line(name, step), flush=True)
                if rate == FIXED_PER_S:
                    figures |= _fixed(step)
                if not step.kept_up():
                    break
                figures["messages received, highest rate kept up with, /s"] = step.received
                figures["there: CPU of the server, us/msg"] = step.cpu_us
                rate *= 2
            load.close()
    return figures


def _fixed(step: Step) -> dict[str, float]:
    found = {
        f"at {FIXED_PER_S:g} a second: receipt p50, ms": step.receipt[0],
        f"at {FIXED_PER_S:g} a second: receipt p99, ms": step.receipt[1],
        f"at {FIXED_PER_S:g} a second: CPU of the server, us/msg": step.cpu_us,
    }
    if step.ack is not None:
        found[f"at {FIXED_PER_S:g} a second: ack p50, ms"] = step.ack[0]
        found[f"at {FIXED_PER_S:g} a second: ack p99, ms"] = step.ack[1]
    return found


def _line(name: str, step: Step) -> str:
    ack = f"ack p50 {step.ack[0]:.2f} p99 {step.ack[1]:.2f} ms" if step.ack else "no acks"
    return (
        f"  {name:17} offered {step.offered:6.0f}/s  received {step.received:6.0f}/s  "
        f"receipt p50 {step.receipt[0]:.2f} p99 {step.receipt[1]:.2f} ms  {ack}  "
        f"server {step.cpu_us:.0f} us/msg{'' if step.kept_up() else '  not kept up with'}"
    )


def _resident(server: Server) -> int:
    statm = Path(f"/proc/{server.process.child.pid}/statm").read_text().split()
    return int(statm[1]) * os.sysconf("SC_PAGE_SIZE")


async def run(quick: bool) -> None:
    peers = _peers()
    rounds, seconds, connections = (1, 2.0, 500) if quick else (2, 4.0, 2_000)
    found: dict[str, list[dict[str, float]]] = {name: [] for name in peers}
    for _ in range(rounds):  # in turn, so that what else the machine does falls on all
        for name, peer in peers.items():
            found[name].append(await measure(name, peer, seconds, connections))
    for name in peers:
        if name != OURS:
            print(f"{OURS} beside {name}; the ratio is ours to theirs")
            print(*table.lines({name: found[name], OURS: found[OURS]}), sep="\n")
