"""The cross-IDC signal queue over a real gRPC stream."""

from __future__ import annotations

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator

import grpc
import pytest

from imcore.convert import vector_of
from imcore.proto import client_pb2 as pb
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.runtime import SystemClock
from imcore.words import Origin
from services.route import signals
from services.route.signals import SignalQueue

FRA = Origin("fra", 1)


class Receiver(rpc.PeerServicer):
    def __init__(self) -> None:
        self.batches: asyncio.Queue[peer.SignalBatch] = asyncio.Queue()
        self.break_after = 0

    async def Signals(self, requests, context):
        async for batch in requests:
            self.batches.put_nowait(batch)
            if self.break_after:
                self.break_after -= 1
                await context.abort(grpc.StatusCode.UNAVAILABLE, "the link broke")
        return peer.SignalsDone()


@contextlib.asynccontextmanager
async def running() -> AsyncIterator[tuple[Receiver, SignalQueue]]:
    receiver = Receiver()  # type: ignore[abstract]  # the rest: UNIMPLEMENTED
    server = grpc.aio.server()
    rpc.add_PeerServicer_to_server(receiver, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}")
    queue = SignalQueue("iad", lambda: channel, SystemClock())
    task = asyncio.create_task(queue.run())
    try:
        yield receiver, queue
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await channel.close(None)
        await server.stop(0)


async def next_batch(receiver: Receiver) -> peer.SignalBatch:
    return await asyncio.wait_for(receiver.batches.get(), 20)


async def test_signals_of_one_conversation_cross_as_one_with_the_highest_heads():
    async with running() as (receiver, queue):
        for seq in (1, 3, 2):
            queue.add("d:ann:bob", [f"user{seq}", "bob"], FRA, seq)
        queue.add("d:ann:eve", ["eve"], FRA, 9)
        batch = await next_batch(receiver)
        found = {s.conversation: (list(s.uids), vector_of(s.heads)) for s in batch.signals}
        assert found == {
            "d:ann:bob": (["bob", "user1", "user2", "user3"], {FRA: 3}),
            "d:ann:eve": (["eve"], {FRA: 9}),
        }


async def test_of_who_types_the_last_word_goes_along(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals, "_TYPING_MAX", 2)
    async with running() as (receiver, queue):
        for uid, lives_ms in (("ann", 1), ("ann", 2), ("bob", 3), ("mia", 4)):
            typing = pb.Typing(conversation="g:1", uid=uid, lives_ms=lives_ms)
            queue.add_typing(["eve"], typing)
        batch = await next_batch(receiver)
        found = [(row.typing.uid, row.typing.lives_ms, list(row.uids)) for row in batch.typing]
        assert found == [("ann", 2, ["eve"]), ("bob", 3, ["eve"])]
        assert queue.dropped == 1 and not batch.signals


async def test_a_broken_stream_is_opened_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals, "_RETRY_S", 0.01)
    async with running() as (receiver, queue):
        receiver.break_after = 1
        queue.add("d:a:b", ["b"], FRA, 1)
        await next_batch(receiver)
        for seq in range(2, 400):
            queue.add("d:a:b", ["b"], FRA, seq)
            with contextlib.suppress(TimeoutError):
                batch = await asyncio.wait_for(receiver.batches.get(), 0.05)
                assert batch.signals[0].heads[0].seq >= 2
                return
        pytest.fail("no signal came through after the stream had broken")


async def test_a_backlog_is_bounded_and_goes_in_several_messages(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(signals, "_QUEUED_MAX", 5)
    monkeypatch.setattr(signals, "_BATCH_MAX", 2)
    queue = SignalQueue("iad", lambda: pytest.fail("not dialled here"), SystemClock())
    for number in range(8):
        queue.add(f"g:{number}", ["ann"], FRA, 1)
    assert queue.dropped == 3
    batches = queue._batches()
    names = [[s.conversation for s in (await anext(batches)).signals] for _ in range(3)]
    assert names == [["g:3", "g:4"], ["g:5", "g:6"], ["g:7"]]
    assert queue.sent == 5
    await batches.aclose()  # type: ignore[attr-defined]


async def test_a_link_that_is_away_leaves_nobody_behind_who_takes_signals(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """gRPC goes on asking for what is to be written to a call that has ended."""
    monkeypatch.setattr(signals, "_RETRY_S", 0.05)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    backoff = [(f"grpc.{which}_reconnect_backoff_ms", 100) for which in ("initial", "min", "max")]
    channel = grpc.aio.insecure_channel(f"127.0.0.1:{port}", options=backoff)
    queue = SignalQueue("iad", lambda: channel, SystemClock())
    before = len(asyncio.all_tasks())
    running = asyncio.create_task(queue.run())
    await asyncio.sleep(1.5)  # nobody is there, and there is nothing to say
    tasks = len(asyncio.all_tasks()) - before
    server = grpc.aio.server()
    receiver = Receiver()  # type: ignore[abstract]  # the rest: UNIMPLEMENTED
    rpc.add_PeerServicer_to_server(receiver, server)
    server.add_insecure_port(f"127.0.0.1:{port}")
    await server.start()
    await asyncio.sleep(1.0)
    queue.add("d:ann:bob", ["bob"], Origin("fra", 1), 1)
    await asyncio.sleep(1.0)
    running.cancel()
    await asyncio.gather(running, return_exceptions=True)
    await channel.close(None)
    await server.stop(0)
    assert [one.conversation for one in receiver.batches.get_nowait().signals] == ["d:ann:bob"]
    assert tasks < 6
