"""Files of an encrypted conversation through a client and a running IDC."""

from __future__ import annotations

import asyncio
from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from imcore.tokens import Claims, mint
from imctl.testing.lab import until
from imctl.testing.onenode import running
from services.node.node import Node
from services.sdk import Client, SendFailed

CANARY = b"canary-d2c8"


def client(node: Node, uid: str) -> Client:
    ipconf = [f"https://{node.config.idc.endpoints.ipconf}"]
    token = mint(node.config.keys, Claims(uid, "phone", node.clock.wall_ms() + 60_000))
    ca = node.config.pki / "ca.pem"
    key = uid[0].encode() * 32
    return Client(token, ipconf=ipconf, ca_file=ca, forwarded_for="127.0.0.1", encryption_key=key)


async def test_a_file_is_encrypted_with_the_conversation_and_read_by_its_members(
    tmp_path: Path,
) -> None:
    plain, served = CANARY * 20_000, tmp_path / "served"
    served.mkdir()
    (tmp_path / "photo").write_bytes(plain)
    async with AsyncExitStack() as stack:
        node = await stack.enter_async_context(
            running(served, False, edit=lambda spec: spec.update(media={}))
        )
        ann, bob = [await stack.enter_async_context(client(node, uid)) for uid in ("ann", "bob")]

        async def published() -> bool:
            return ann.keys_published and bob.keys_published

        await until(published, 20, "the devices' keys are not published")
        team = await ann.create_group(["bob"], encrypted=True)
        open_one = await ann.create_group(["bob"])
        ref = await ann.upload(tmp_path / "photo", "image/png", "photo", conversation=team)
        again = await ann.upload(plain, conversation=team)
        assert ref.secret != again.secret and ref.named.sha256 != again.named.sha256
        await ann.send(team, CANARY, media=[ref])

        async def shown() -> bool:
            return len(bob.view(team)) == 1

        await until(shown, 20, "bob is shown nothing")
        [got] = bob.view(team)[0].media
        assert got == ref and (got.size, got.type, got.label) == (len(plain), "image/png", "photo")
        await bob.download(got, tmp_path / "copy")
        assert await asyncio.to_thread((tmp_path / "copy").read_bytes) == plain
        for path in served.rglob("*"):
            assert not path.is_file() or CANARY not in path.read_bytes(), path
        # Neither goes where it is not as safe as the rest of what is said there.
        bare = await ann.upload(b"a file", conversation=open_one)
        assert not bare.secret
        for where, files, code in (
            (team, [ref, bare], "plain_file"),
            (open_one, [ref], "sealed_file"),
        ):
            with pytest.raises(SendFailed) as refused:
                await ann.send(where, b"", media=files)
            assert refused.value.code == code and not refused.value.pending
        await ann.send(open_one, b"", media=[bare])
        assert len(ann.view(team)) == 1
