"""Clients by QUIC over running IDCs: a gateway restarts under them, and their IDC is lost."""

from __future__ import annotations

from contextlib import AsyncExitStack
from typing import Any

import pytest

from imctl import hotrestart
from imctl.testing.lab import row_of_ports, until
from services.sdk.core import passage
from tests.e2e.test_features import at_home, client, shows

pytestmark = pytest.mark.e2e

VICTIM, OTHER = "fra", "iad"


def with_quic(spec: dict[str, Any]) -> None:
    spec["client"] = {**spec.get("client", {}), "quic": True}
    idc = spec["idcs"][0]
    assert idc["name"] == VICTIM
    idc["gateways"] = 2
    host = idc["endpoints"]["gateway"].rpartition(":")[0]
    idc["endpoints"]["gateway"] = f"{host}:{row_of_ports(spec, 2)}"


async def test_a_hot_restart_and_the_loss_of_the_idc_by_quic(stage, monkeypatch) -> None:
    # On a machine that is busy with others TLS would win now and then.
    monkeypatch.setattr(passage, "HEAD_START_S", 3.0)
    monkeypatch.setattr(passage, "HEAD_START_MAX_S", 3.0)
    monkeypatch.setattr(passage, "HEAD_START_OTHERS_S", 3.0)
    async with AsyncExitStack() as stack:
        lab, cast = await stack.enter_async_context(stage(edit=with_quic, split=True))
        for idc, count in ((VICTIM, 2), (OTHER, 1)):
            await lab.wait_gateways(idc, count)
        ann = await stack.enter_async_context(client(lab, cast, "ann", "phone", VICTIM))
        bob = await stack.enter_async_context(client(lab, cast, "bob", "phone", OTHER))
        chat = ann.direct("bob")
        await at_home(ann, VICTIM)
        await at_home(bob, OTHER)
        assert ann.state.quic and bob.state.quic
        await ann.send(chat, b"one")
        await shows(bob, chat, 1)

        await hotrestart.restart(lab.target, VICTIM, [1, 2], lambda number, row: None)
        await ann.send(chat, b"two")
        assert ann.state.idc == VICTIM and ann.state.quic
        await shows(bob, chat, 2)

        await lab.kill(VICTIM)

        async def elsewhere() -> bool:
            return ann.state.idc not in ("", VICTIM)

        await until(elsewhere, 60, "ann has found no other IDC")
        await ann.send(chat, b"three", timeout_ms=30_000)
        await bob.send(chat, b"four")
        await shows(bob, chat, 4)
        await shows(ann, chat, 4)
        assert ann.state.quic
        assert [message.content for message in ann.view(chat)] == [
            b"one",
            b"two",
            b"three",
            b"four",
        ]
