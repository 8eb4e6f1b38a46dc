"""Region keys rotated while everything runs: old tokens are good until their key is retired."""

from __future__ import annotations

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiohttp
import pytest

from imcore import pki
from imcore.attest import RegionKeys
from imcore.errors import BadInput, Code, Refused
from imcore.pki import load_region_keys
from imcore.proto import client_pb2 as pb
from imcore.tls import client_ssl_context
from imcore.tokens import Claims, mint, verify
from imctl.testing.onenode import running
from services.gateway.testing import FrameClient, dial
from services.node.node import Node

CLAIMS = Claims("ann", "phone", 10_000_000)


def key_of(token: str) -> int:
    import base64

    text = token.split(".")[1]
    return int.from_bytes(base64.urlsafe_b64decode(text + "==")[:4], "big")


def test_what_an_old_key_signed_is_good_until_it_is_retired(tmp_path: Path) -> None:
    pki.init(tmp_path, {}, pki.utc_now(0))
    old = mint(load_region_keys(tmp_path), CLAIMS)
    assert pki.add_key(tmp_path) == 2
    between = mint(load_region_keys(tmp_path), CLAIMS)
    pki.use_key(tmp_path, 2)
    new = mint(load_region_keys(tmp_path), CLAIMS)
    assert [key_of(token) for token in (old, between, new)] == [1, 1, 2]
    for token in (old, between, new):
        assert verify(load_region_keys(tmp_path), token, 0) == CLAIMS
    pki.retire_key(tmp_path, 1)
    assert verify(load_region_keys(tmp_path), new, 0) == CLAIMS
    for token in (old, between):
        with pytest.raises(Refused, match="signature does not verify"):
            verify(load_region_keys(tmp_path), token, 0)


def test_a_token_cannot_name_another_key_than_it_was_signed_with() -> None:
    keys = RegionKeys({1: b"a" * 32, 2: b"b" * 32}, 2)
    body, signature = mint(RegionKeys({1: b"a" * 32}, 1), CLAIMS).split(".")
    assert verify(keys, f"{body}.{signature}", 0) == CLAIMS
    forged = "AAAAAg" + signature[6:]  # the first four bytes: key 2
    assert key_of(f"{body}.{forged}") in (2, 3)
    with pytest.raises(Refused, match="signature does not verify"):
        verify(keys, f"{body}.{forged}", 0)


def test_ids_are_never_given_out_again_and_the_signing_key_stays(tmp_path: Path) -> None:
    pki.init(tmp_path, {}, pki.utc_now(0))
    assert pki.add_key(tmp_path) == 2
    with pytest.raises(BadInput, match="key 1 signs"):
        pki.retire_key(tmp_path, 1)
    pki.retire_key(tmp_path, 2)
    assert pki.add_key(tmp_path) == 3
    for change in (pki.use_key, pki.retire_key):
        with pytest.raises(BadInput, match="expected a key id of 1, 3, got 2"):
            change(tmp_path, 2)
    assert pki.key_ids(tmp_path) == (1, [1, 3])
    path = tmp_path / "region-keys.json"
    assert path.stat().st_mode & 0o777 == 0o600
    assert len(set(json.loads(path.read_text())["keys"].values())) == 2


def test_commands_at_once_lose_no_key_and_bring_none_back(tmp_path: Path) -> None:
    """A key that is retired, and verifies again because another command wrote what it had read
    before, is one that its owner believes dead."""
    pki.init(tmp_path, {}, pki.utc_now(0))
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(lambda _: pki.add_key(tmp_path), range(40)))
        assert sorted(made) == list(range(2, 42))
        assert pki.key_ids(tmp_path).ids == list(range(1, 42))
        retired = [pool.submit(pki.retire_key, tmp_path, number) for number in made[::2]]
        added = [pool.submit(pki.add_key, tmp_path) for _ in range(20)]
        assert [each.result() for each in retired] == [None] * 20
        assert len({each.result() for each in added}) == 20
    assert not set(made[::2]) & set(pki.key_ids(tmp_path).ids)
    assert len(pki.key_ids(tmp_path).ids) == 41


async def connected(node: Node, token: str) -> tuple[FrameClient, pb.Response]:
    context = client_ssl_context(node.config.pki / "ca.pem")
    client = await dial(node.gateways[0].port, context)
    connect = pb.Connect(token=token.encode(), connection_epoch=node.clock.wall_ms())
    return client, await client.ask(pb.Request(connect=connect))


async def http_status(node: Node, token: str) -> int:
    context = client_ssl_context(node.config.pki / "ca.pem")
    url = f"https://{node.config.idc.endpoints.ipconf}/v1/gateways"
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=context)) as http,
        http.get(url, headers={"Authorization": f"Bearer {token}"}) as response,
    ):
        return response.status


async def follows(node: Node, current: int, ids: list[int]) -> None:
    async with asyncio.timeout(30):
        while node.status.as_dict()["region_keys"] != {"current": current, "ids": ids}:  # noqa: ASYNC110 - the node's own loop
            await asyncio.sleep(0.05)


async def test_a_running_idc_takes_new_keys_and_its_clients_stay(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    async with running(tmp_path, faults=False) as node:

        def minted(uid: str) -> str:
            return mint(
                load_region_keys(folder), Claims(uid, "phone", node.clock.wall_ms() + 60_000)
            )

        old = minted("ann")
        ann, answer = await connected(node, old)
        assert answer.error.code == ""
        pki.add_key(folder)
        await follows(node, 1, [1, 2])
        pki.use_key(folder, 2)
        await follows(node, 2, [1, 2])
        new = minted("bob")
        assert (key_of(old), key_of(new)) == (1, 2)
        for token in (old, new):
            assert await http_status(node, token) == 200
            client, answer = await connected(node, token)
            assert answer.error.code == ""
            client.abort()
        ann, _ = await connected(node, old)

        pki.retire_key(folder, 1)
        await follows(node, 2, [2])
        assert await http_status(node, old) == 401
        _, answer = await connected(node, old)
        assert answer.error.code == Code.UNAUTHENTICATED
        assert await http_status(node, new) == 200
        # Who is connected goes on, and is answered with marks of the new key.
        sent = await ann.ask(
            pb.Request(
                send=pb.Send(conversation="d:ann:bob", outbox="o1", cid=1, floor=1, content=b"hi")
            )
        )
        assert (sent.error.code, sent.send_ack.placed.seq) == ("", 1)
        assert sent.stamp.key_id == 2

        # A file that is damaged changes nothing but the alarms.
        (folder / "region-keys.json").write_text("{}")
        while node.followed_keys.alarm is None:  # noqa: ASYNC110 - the node's own loop
            await asyncio.sleep(0.05)
        assert "the region keys stay as they were" in str(node.status.as_dict()["alarms"])
        assert await http_status(node, new) == 200
