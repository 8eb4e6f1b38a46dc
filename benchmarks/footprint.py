"""What a message and a connection take: `python -m benchmarks.footprint [--connections N]`.

Of a message: the bytes of its record in the op log, of the rows that stay in the KV, and of the
push of it, each without its content; by the codecs themselves, so alike in every run.

Of a connection, plain and over TLS (gateway and state in one process over a stub of im, clients in
another): memory, and the CPU of a connect with its handshake and of a heartbeat.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import uvloop

from benchmarks.deployment import one_idc
from imcore import frame
from imcore.attest import RegionKeys, content_hash
from imcore.convert import key_pb, stamp_pb
from imcore.hlc import from_ms
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.tls import client_ssl_context, gateway_ssl_context
from imcore.tokens import Claims, mint
from imcore.words import ClientKey, Origin
from services.engines.records import EMPTY_END, pack, record_after
from services.gateway.config import GatewayConfig
from services.gateway.testing import FrameClient
from services.im import entries
from services.im.conversation import Conversation
from services.im.fold import Fold, Rows, Taken, needs
from services.state.testing import Front

KEYS = RegionKeys({1: b"b" * 32}, 1)
ORIGIN = Origin("fra", 1)
CONVERSATION = "d:u10000000001:u10000000002"
ORDER = b"o"  # the table that is scanned down
CONTENT = bytes(120)  # the median of a realistic load, as in `throughput`
MESSAGES = 200
NOW_MS = 1_790_000_000_000
AT_ONCE = 50
HEARTBEATS = 10
SOURCES = 8  # loopback addresses of clients: one has some 28,000 ports
PATIENT = GatewayConfig(
    idle_ms=600_000, first_frame_ms=60_000, requests_per_s=1e9, connects_per_s=1e9
)


class MessageBytes(NamedTuple):
    """Beside the content, for each message; of a long conversation."""

    record: float  # in the op log, with the record's header
    rows: float  # keys and values that stay in the KV of one IDC
    row_count: float
    writes: float  # rows put, those that are overwritten included
    shadows: float  # what TiKV keeps beside them, in a row more, to scan down (docs/tikv.md)
    push: float  # the frame that a receiving device gets, without TLS


def message_bytes() -> MessageBytes:
    """By the codecs of the log, the fold and the frames."""
    ops = [_op(number) for number in range(1, MESSAGES + 1)]
    rows: dict[bytes, bytes] = {}
    conversations = {CONVERSATION: Conversation(CONVERSATION)}
    end, record_bytes, push_bytes, writes, first = EMPTY_END, 0, 0, 0, (0, 0)
    for number, op in enumerate(ops, start=1):
        record = record_after(end, 0, 1, op.SerializeToString())
        record_bytes += len(pack(record))
        wanted = Rows({key: rows.get(key) for key in needs(0, [op])})
        effects = Fold(0).batch([Taken(record, op)], ORIGIN, conversations, wanted, number)
        rows.update(wanted.puts)
        writes += len(wanted.puts)
        for gone in wanted.deletes:
            rows.pop(gone, None)
        [entry] = effects.entries[CONVERSATION]
        push_bytes += len(_push(entries.build(entry, KEYS)))
        if number == MESSAGES // 2:
            first = len(rows), _total(rows)
    half = MESSAGES - MESSAGES // 2
    content = len(CONTENT)
    return MessageBytes(
        record_bytes / MESSAGES - content,
        (_total(rows) - first[1]) / half - content,
        (len(rows) - first[0]) / half,
        writes / MESSAGES,
        sum(len(key) + len(value) for key, value in rows.items() if key[2:3] == ORDER) / MESSAGES,
        push_bytes / MESSAGES - content,
    )


def _op(number: int) -> oplog.Op:
    op = oplog.Op(hlc=from_ms(NOW_MS + number), conversation=CONVERSATION, seq=number)
    op.wall_ms = op.message.composed_ms = NOW_MS + number
    key = ClientKey("u10000000001", "phone", "0123456789abcdef", CONVERSATION, number)
    op.message.key.CopyFrom(key_pb(key))
    op.message.content = CONTENT
    op.message.content_hash = content_hash(CONTENT)
    return op


def _total(rows: dict[bytes, bytes]) -> int:
    return sum(len(key) + len(value) for key, value in rows.items())


def _push(entry: pb.Entry) -> bytes:
    """As the state role makes it."""
    event = pb.Event(stamp=stamp_pb(KEYS.stamp(entry.hlc)))
    event.push.conversation = CONVERSATION
    event.push.entries.append(entry)
    event.push.stable = entry.hlc
    return frame.encode(frame.EVENT, 0, event.SerializeToString())


# ------------------------------------------------------------------------------ connections


async def clients(port: int, count: int, ca: Path | None) -> None:
    """Another process: connect when told, beat when told, end when told. ``ca``: with TLS."""
    context = client_ssl_context(ca) if ca is not None else None
    loop = asyncio.get_running_loop()
    all_of_them: list[FrameClient] = []
    gate = asyncio.Semaphore(AT_ONCE)

    async def connected(number: int) -> None:
        async with gate:
            source = f"127.0.0.{1 + number % SOURCES}", 0
            _, client = await loop.create_connection(
                FrameClient, "127.0.0.1", port, ssl=context, local_addr=source
            )
            client.transport.write(frame.client_preface())
            claims = Claims(f"u{number}", "phone", time.time_ns() // 1_000_000 + 3_600_000)
            connect = pb.Connect(token=mint(KEYS, claims).encode(), connection_epoch=1)
            await client.ask(pb.Request(connect=connect), 60.0)
            all_of_them.append(client)

    async def beat(client: FrameClient) -> None:
        async with gate:
            await client.ask(pb.Request(heartbeat=pb.Heartbeat()), 60.0)

    await _told("ready")
    await asyncio.gather(*map(connected, range(count)))
    await _told("connected")
    for _ in range(HEARTBEATS):
        await asyncio.gather(*map(beat, all_of_them))
    await _told("beaten")


async def _told(word: str) -> None:
    print(word, flush=True)
    await asyncio.to_thread(sys.stdin.readline)


async def connections(count: int, pki: Path | None) -> None:
    """Prints what each connection takes of this process, which holds the gateway and the state.
    ``pki``: of the certificate; None: without TLS."""
    ca = pki / "ca.pem" if pki is not None else None
    tls = (gateway_ssl_context(pki, "fra"), client_ssl_context(ca)) if pki and ca else None
    async with Front(KEYS, tls, limits=PATIENT) as front:
        [gateway] = front.gateways
        command = [sys.executable, "-m", "benchmarks.footprint", "--clients", str(gateway.port)]
        command += ["--connections", str(count), *(["--ca", str(ca)] if ca else [])]
        child = await asyncio.create_subprocess_exec(
            *command, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        assert child.stdin is not None and child.stdout is not None

        async def until(word: bytes) -> tuple[float, int]:
            """CPU and memory of this process when the clients say the word."""
            assert child.stdin is not None and child.stdout is not None
            if await child.stdout.readline() != word + b"\n":
                raise SystemExit("the clients could not connect")
            gc.collect()
            state = time.process_time(), _resident_bytes()
            child.stdin.write(b"go on\n")
            return state

        before, connected, beaten = [
            await until(word) for word in (b"ready", b"connected", b"beaten")
        ]
        await child.wait()
    connect_us = (connected[0] - before[0]) / count * 1e6
    beat_us = (beaten[0] - connected[0]) / (count * HEARTBEATS) * 1e6
    how = "over TLS" if tls else "without TLS"
    print(
        f"{count} connections {how}: {(connected[1] - before[1]) / count / 1024:.1f} KiB each "
        f"beside {before[1] / 2**20:.0f} MiB, {connect_us:.0f} us CPU a connect, "
        f"{beat_us:.1f} us CPU a heartbeat",
        flush=True,
    )


def _resident_bytes() -> int:
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--connections", type=int, default=4_000)
    parser.add_argument("--clients", type=int, help=argparse.SUPPRESS)
    parser.add_argument("--ca", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = options.connections + 200
    if soft < wanted:
        if hard != resource.RLIM_INFINITY and hard < wanted:
            raise SystemExit(f"{options.connections} connections need {wanted} open files")
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
    if options.clients:
        uvloop.run(clients(options.clients, options.connections, options.ca))
        return
    each = message_bytes()
    print(
        f"a message beside its content: record {each.record:.0f} bytes, rows {each.rows:.0f} bytes "
        f"in {each.row_count:.1f} rows, {each.writes:.1f} rows written (TiKV: one row and "
        f"{each.shadows:.0f} bytes more), push {each.push:.0f} bytes",
        flush=True,
    )
    sys.stdout.flush()
    with tempfile.TemporaryDirectory(prefix="bench-footprint-") as name:
        one_idc(Path(name))
        for pki in (None, Path(name) / "pki"):
            # Each in a process of its own: memory that was given back would be used again.
            if (child := os.fork()) == 0:
                uvloop.run(connections(options.connections, pki))
                os._exit(0)
            if os.waitpid(child, 0)[1]:
                raise SystemExit("the connections could not be measured")


if __name__ == "__main__":
    main()
