"""CPU of gateway and state per message: `python -m benchmarks.gateway [--pki DIR --idc NAME]`.

A message here is one Send, its ack, and one push to each of two devices, over real sockets; im is
a stub in memory whose own cost is measured and taken off. The clients run in another process and
keep a window of sends in flight, so latency is that of a full queue; the figure is the CPU time.
Fan-out: one push to RECEIVERS sessions, encoded once; the ratio is to a whole message, plain.
Connects: dial, Connect and goodbye, one after the other; and what stands, idle, in memory.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import ssl
import subprocess
import sys
import time
from pathlib import Path

import uvloop

from imcore.attest import RegionKeys
from imcore.proto import client_pb2 as pb
from imcore.quic import server_configuration
from imcore.tls import client_ssl_context, gateway_ssl_context
from imcore.tokens import Claims, mint
from imcore.words import Origin
from services.gateway.config import GatewayConfig
from services.gateway.testing import FrameClient, dial, dial_quic
from services.ports import Session
from services.state.outgoing import Outgoing
from services.state.testing import Front, MemoryIm

KEYS = RegionKeys({1: b"b" * 32}, 1)
PAIRS = 20
WINDOW = 8  # sends in flight for each pair
CONTENT = bytes(200)
RECEIVERS = 200
FAN_OUTS = 300
UNLIMITED = GatewayConfig(
    requests_per_s=1e9, requests_burst=1_000_000_000, connects_per_s=1e9,
    quic_handshakes_per_s=1e9, quic_retries_per_s=1e9, idle_ms=600_000, first_frame_ms=30_000,
)  # fmt: skip
CONNECTS = 300
TRANSPORTS = ("tls", "quic")


def conversation(pair: int) -> str:
    return f"d:a{pair}:b{pair}"


async def come(port: int, context: ssl.SSLContext | None, quic: bool) -> FrameClient:
    if quic:
        assert context is not None
        return await dial_quic(port, context)
    return await dial(port, context)


async def connect(port: int, ca: Path, quic: bool) -> None:
    """One after the other; then they stand, idle, until the other process says that it is over."""
    context = client_ssl_context(ca)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    standing = []
    for number in range(CONNECTS):
        client = await come(port, context, quic)
        claims = Claims(f"a{number}", "phone", time.time_ns() // 1_000_000 + 3_600_000)
        connect = pb.Connect(token=mint(KEYS, claims).encode(), connection_epoch=1)
        await client.ask(pb.Request(connect=connect), 30.0)
        standing.append(client)
    print("there", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for client in standing:
        client.abort()


async def load(port: int, messages: int, ca: Path | None, quic: bool) -> None:
    context = client_ssl_context(ca) if ca is not None else None

    async def connected(uid: str) -> FrameClient:
        client = await come(port, context, quic)
        claims = Claims(uid, "phone", time.time_ns() // 1_000_000 + 3_600_000)
        connect = pb.Connect(token=mint(KEYS, claims).encode(), connection_epoch=1)
        await client.ask(pb.Request(connect=connect))
        return client

    senders = [await connected(f"a{pair}") for pair in range(PAIRS)]
    receivers = [await connected(f"b{pair}") for pair in range(PAIRS)]
    left = messages

    async def worker(pair: int) -> None:
        nonlocal left
        send = pb.Request(send=pb.Send(conversation=conversation(pair), cid=1, content=CONTENT))
        while left > 0:
            left -= 1
            await senders[pair].ask(send, 30.0)

    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    await asyncio.gather(*(worker(pair) for pair in range(PAIRS) for _ in range(WINDOW)))
    for client in (*senders, *receivers):
        client.abort()


async def listen(port: int, receivers: int = RECEIVERS) -> None:
    """So many sessions that read what comes until the other process says that it is over."""
    clients = []
    for number in range(receivers):
        client = await dial(port, None)
        claims = Claims(f"r{number}", "phone", time.time_ns() // 1_000_000 + 3_600_000)
        connect = pb.Connect(token=mint(KEYS, claims).encode(), connection_epoch=1)
        await client.ask(pb.Request(connect=connect))
        clients.append(client)
    print("ready", flush=True)
    await asyncio.to_thread(sys.stdin.readline)
    for client in clients:
        client.abort()


async def measure_fan_out(us_per_message: float) -> None:
    async with Front(KEYS, None, limits=UNLIMITED) as front:
        [gateway] = front.gateways
        child = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "benchmarks.gateway", "--listen", str(gateway.port),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        )  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        if await child.stdout.readline() != b"ready\n":
            raise SystemExit("the clients could not connect")
        uids = [f"r{number}" for number in range(RECEIVERS)]
        cpu = time.process_time()
        for number in range(1, FAN_OUTS + 1):
            entry = pb.Entry(seq=number, hlc=number, origin=pb.Origin(idc="fra", incarnation=1))
            entry.message.content = CONTENT
            front.state.push_entries("g:all", uids, [entry], {front.im.origin: number}, 0)
            await asyncio.sleep(0.005)  # the readers share the machine
        us = (time.process_time() - cpu) / (FAN_OUTS * RECEIVERS) * 1e6
        child.stdin.write(b"over\n")
        await child.wait()
        print(
            f"fan-out {RECEIVERS} receivers, {us:.1f} us CPU a push, "
            f"{us / us_per_message:.2f} of a message, {gateway.counters.dropped} dropped",
            flush=True,
        )


def stub_us(messages: int) -> float:
    """What the stub itself costs, with nobody connected."""
    im = MemoryIm(Outgoing(Front(KEYS).clock, pb.Stamp), pb.Stamp, Origin("fra", 1))
    session = Session("s", "a0", "phone", 1, "fra-gw-1", 1)
    request = pb.Request(send=pb.Send(conversation=conversation(0), cid=1, content=CONTENT))
    begin = time.process_time()
    for _ in range(messages):
        im.submit(session, request, lambda response: None)
    return (time.process_time() - begin) / messages * 1e6


async def measure(name: str, messages: int, pki: Path | None, idc: str) -> float:
    tls, quic = None, None
    ca = pki / "ca.pem" if pki is not None else None
    if pki is not None and ca is not None:
        tls = gateway_ssl_context(pki, idc), client_ssl_context(ca)
        quic = server_configuration(pki, idc) if name == "quic" else None
    async with Front(KEYS, tls, limits=UNLIMITED, quic=quic) as front:
        [gateway] = front.gateways
        command = [sys.executable, "-m", "benchmarks.gateway", "--load", str(gateway.port)]
        command += ["--messages", str(messages), *(["--ca", str(ca)] if ca else [])]
        command += ["--quic"] if quic else []
        child = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdin is not None and child.stdout is not None
        if await child.stdout.readline() != b"ready\n":
            raise SystemExit("the clients could not connect")
        wall, cpu = time.perf_counter(), time.process_time()
        child.stdin.write(b"go\n")
        await child.wait()
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        counters = gateway.counters
        per_message = cpu / messages * 1e6 - stub_us(messages)
        print(
            f"{name:6} {messages / wall:8.0f} msg/s {per_message:7.1f} us CPU a message, "
            f"{counters.pushed / messages:.1f} pushes a message, "
            f"{counters.pushed / max(1, counters.writes):.1f} pushes a write, "
            f"{counters.dropped} dropped",
            flush=True,
        )
        return per_message


async def measure_connects(name: str, pki: Path, idc: str) -> None:
    """CPU ms of one, and KiB while it stands."""
    ca = pki / "ca.pem"
    tls = gateway_ssl_context(pki, idc), client_ssl_context(ca)
    quic = server_configuration(pki, idc) if name == "quic" else None
    async with Front(KEYS, tls, limits=UNLIMITED, quic=quic) as front:
        [gateway] = front.gateways
        command = [sys.executable, "-m", "benchmarks.gateway", "--connect", str(gateway.port)]
        command += ["--ca", str(ca), *(["--quic"] if quic else [])]
        child = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdin is not None and child.stdout is not None
        if await child.stdout.readline() != b"ready\n":
            raise SystemExit("the clients did not start")
        cpu, memory = time.process_time(), _resident_bytes()
        child.stdin.write(b"go\n")
        await child.stdout.readline()
        cpu, memory = time.process_time() - cpu, _resident_bytes() - memory
        assert len(gateway) == CONNECTS
        child.stdin.write(b"over\n")
        await child.wait()
        ms, kib = cpu / CONNECTS * 1e3, memory / CONNECTS / 1024
        print(f"{name:6} {ms:8.2f} ms CPU a connect, {kib:.0f} KiB while it stands", flush=True)


def connects_alone(name: str, pki: Path, idc: str) -> float:
    """In a process of its own: what another has given back is no memory of this one."""
    command = [sys.executable, "-m", "benchmarks.gateway", "--connects", name]
    command += ["--pki", str(pki), "--idc", idc]
    said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    print(said, end="", flush=True)
    return float(said.split()[1])


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--messages", type=int, default=20_000)
    parser.add_argument("--pki", type=Path, help="a pki folder: measures TLS too")
    parser.add_argument("--idc", default="fra", help="whose certificate of that folder")
    parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--listen", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--connects", choices=TRANSPORTS, help=argparse.SUPPRESS)
    parser.add_argument("--connect", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ca", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--quic", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.load:
        uvloop.run(load(options.load, options.messages, options.ca, options.quic))
        return
    if options.connects:
        uvloop.run(measure_connects(options.connects, options.pki, options.idc))
        return
    if options.connect:
        uvloop.run(connect(options.connect, options.ca, options.quic))
        return
    if options.listen:
        uvloop.run(listen(options.listen))
        return
    plain_us = uvloop.run(measure("plain", options.messages, None, options.idc))
    if options.pki is not None:
        tls_us = uvloop.run(measure("tls", options.messages, options.pki, options.idc))
        print(f"tls costs {tls_us / plain_us:.2f} times as much as plain")
        quic_us = uvloop.run(measure("quic", options.messages // 5, options.pki, options.idc))
        tls_ms, quic_ms = (connects_alone(name, options.pki, options.idc) for name in TRANSPORTS)
        print(
            f"quic costs {quic_us / tls_us:.1f} times as much a message as tls, "
            f"{quic_ms / tls_ms:.1f} times as much a connect"
        )
    uvloop.run(measure_fan_out(plain_us))


if __name__ == "__main__":
    main()
