"""A gRPC channel that goes on with another one below it when its certificate is renewed.

gRPC's own channels show the certificate that they were made with for as long as they live, so a
process had to be restarted before that one expired. Here each call goes out on a channel made with
what the files hold by then. A stream that runs stays where it is until it ends: an old channel is
only closed with the whole, as gRPC would cancel whoever waits for an answer on it. There are as
many as there were rotations in the life of the process.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import grpc
import grpc.aio

LOOK_S = 1.0  # how often the files are looked at, when there are calls


class RenewingChannel(grpc.aio.Channel):
    """``make`` gives a channel with the certificate of now, ``renewed`` says whether that is
    another one since it was asked last."""

    def __init__(self, make: Callable[[], grpc.aio.Channel], renewed: Callable[[], bool]) -> None:
        self._make = make
        self._renewed = renewed
        self._looked_at = 0.0
        self._channels = [make()]
        self._calls: dict[tuple[str, str], Any] = {}  # of the newest channel

    def _newest(self) -> grpc.aio.Channel:
        now = asyncio.get_running_loop().time()
        if now - self._looked_at >= LOOK_S:
            self._looked_at = now
            if self._renewed():
                self._channels.append(self._make())
                self._calls.clear()
        return self._channels[-1]

    def _kind(self, kind: str, method: str, *made_with: Any, **options: Any) -> Any:
        def call(*arguments: Any, **named: Any) -> Any:
            channel = self._newest()
            made = self._calls.get((kind, method))
            if made is None:
                made = getattr(channel, kind)(method, *made_with, **options)
                self._calls[kind, method] = made
            return made(*arguments, **named)

        return call

    def unary_unary(self, method: str, *made_with: Any, **options: Any) -> Any:
        return self._kind("unary_unary", method, *made_with, **options)

    def unary_stream(self, method: str, *made_with: Any, **options: Any) -> Any:
        return self._kind("unary_stream", method, *made_with, **options)

    def stream_unary(self, method: str, *made_with: Any, **options: Any) -> Any:
        return self._kind("stream_unary", method, *made_with, **options)

    def stream_stream(self, method: str, *made_with: Any, **options: Any) -> Any:
        return self._kind("stream_stream", method, *made_with, **options)

    def get_state(self, try_to_connect: bool = False) -> grpc.ChannelConnectivity:
        return self._newest().get_state(try_to_connect)

    async def wait_for_state_change(self, last_observed_state: grpc.ChannelConnectivity) -> None:
        await self._newest().wait_for_state_change(last_observed_state)

    async def channel_ready(self) -> None:
        await self._newest().channel_ready()

    async def close(self, grace: float | None = None) -> None:
        await asyncio.gather(*(channel.close(grace) for channel in self._channels))

    async def __aenter__(self) -> RenewingChannel:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()
