"""A wrong clock in one IDC turns nobody away whose token is good elsewhere."""

from __future__ import annotations

import asyncio
from pathlib import Path

import aiohttp
import pytest

from imcore.attest import RegionKeys
from imcore.errors import Code, Refused
from imcore.proto import client_pb2 as pb
from imcore.tls import client_ssl_context
from imcore.tokens import LEEWAY_MS, Claims, mint, verify
from imctl.testing.onenode import running
from services.gateway.testing import dial
from services.node.node import Node

TEN_MINUTES_MS = 600_000


async def asked(node: Node, token: str) -> tuple[int, str]:
    """HTTP status of ipconf, and the error code of a connect at the gateway."""
    context = client_ssl_context(node.config.pki / "ca.pem")
    url = f"https://{node.config.idc.endpoints.ipconf}/v1/gateways"
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http,
        http.get(url, headers={"Authorization": f"Bearer {token}"}) as response,
    ):
        status = response.status
    client = await dial(node.gateways[0].port, context)
    connect = pb.Connect(token=token.encode(), connection_epoch=node.clock.wall_ms())
    answer = await client.ask(pb.Request(connect=connect))
    client.transport.abort()
    return status, answer.error.code


@pytest.mark.parametrize("offset_ms", [TEN_MINUTES_MS, -TEN_MINUTES_MS], ids=["ahead", "behind"])
async def test_a_clock_ten_minutes_off_judges_tokens_like_the_other_idcs(
    tmp_path: Path, offset_ms: int
) -> None:
    async with running(tmp_path, faults=True) as node:
        async with asyncio.timeout(30):
            while not node.traffic.directory.live():  # noqa: ASYNC110 - the node's own loop
                await asyncio.sleep(0.02)
        true_ms = node.clock.wall_ms()
        node.traffic.controller._on_clock_offset(0)  # as after each probe of another IDC
        node.clock.offset_ms = offset_ms
        keys = node.config.keys
        good = mint(keys, Claims("ann", "phone", true_ms + 60_000))
        assert await asked(node, good) == (200, "")
        expired = mint(keys, Claims("ann", "phone", true_ms - 60_000))
        assert await asked(node, expired) == (401, Code.UNAUTHENTICATED)
        # The next probe measures the offset, and nothing changes.
        node.traffic.controller._on_clock_offset(-offset_ms)
        assert await asked(node, good) == (200, "")
        assert await asked(node, expired) == (401, Code.UNAUTHENTICATED)


def test_a_token_is_taken_for_the_leeway_after_it_expired_and_no_longer() -> None:
    keys = RegionKeys({1: b"k" * 32}, 1)
    token = mint(keys, Claims("ann", "phone", 1_000_000))
    assert verify(keys, token, 1_000_000 + LEEWAY_MS - 1).uid == "ann"
    with pytest.raises(Refused, match="expired"):
        verify(keys, token, 1_000_000 + LEEWAY_MS)
