"""An operator's server that uses the admin API of several IDCs, one of which is lost in the middle:
real nodes, listeners and SDKs over a simulated network."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import aiohttp

from imcore.pki import load_region_keys
from imcore.servicetokens import Scope, Service, mint
from services.sim.loop import Owner
from services.sim.testing import Device, Stage, play
from services.sim.world import Connector, World

GROUP = "g:8e1b46"
ALL = ("fra", "iad", "sin")


class Backend:
    """Next to iad. What an IDC does not answer is answered with status 0."""

    def __init__(self, world: World) -> None:
        self._world = world
        self._owner = Owner("backend")
        world.net.sites[self._owner] = "near-iad"
        service = Service("billing", "notices", tuple(Scope), world.clock.wall_ms() + 3_600_000)
        self._headers = {"Authorization": f"Bearer {mint(load_region_keys(world.pki), service)}"}
        ends = {idc.name: idc.endpoints.admin for idc in world.region.spec.idcs}
        self._urls = {name: f"http://{end}" for name, end in ends.items()}

    async def ask(
        self, idc: str, method: str, path: str, body: Any = None, key: str = ""
    ) -> tuple[int, Any]:
        asked = self._ask(f"{self._urls[idc]}{path}", method, body, key)
        answer: tuple[int, Any] = await self._world.spawn(self._owner, asked)
        return answer

    async def _ask(self, url: str, method: str, body: Any, key: str) -> tuple[int, Any]:
        headers = self._headers | ({"Idempotency-Key": key} if key else {})
        try:
            async with (
                asyncio.timeout(20),
                aiohttp.ClientSession(connector=Connector()) as http,
                http.request(method, url, json=body, headers=headers) as answer,
            ):
                return answer.status, await answer.json()
        except (aiohttp.ClientError, TimeoutError):
            return 0, None

    async def send(self, idc: str, text: str) -> tuple[int, Any]:
        """The text is its key too."""
        body = {"to": GROUP, "text": text}
        return await self.ask(idc, "POST", "/v1/messages", body, key=text)

    async def online(self, idc: str, uid: str) -> set[str]:
        """In which IDCs this user's devices are, as that one knows."""
        _, found = await self.ask(idc, "GET", f"/v1/users?uid={uid}")
        return {device["idc"] for device in found["users"][0]["devices"] if device["online"]}


def shown(device: Device) -> list[bytes]:
    return [message.content for message in device.client.view(GROUP)]


def test_what_a_service_does_acts_once_though_its_idc_is_lost(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        world = stage.world
        backend = Backend(world)
        ann, bob = await stage.device("ann", "p", "fra"), await stage.device("bob", "p", "iad")
        made = {"owner": "ann", "members": ["bob"], "name": "orders"}
        assert (await backend.ask("fra", "PUT", f"/v1/groups/{GROUP}", made))[0] == 200
        for number in range(3):
            assert (await backend.send("fra", f"{number}"))[1]["known"] is False
        assert await backend.online("iad", "ann") == {"fra"}
        # What fra takes now it takes alone, so it does not say that it is done.
        for other in ("iad", "sin"):
            world.net.cut("fra", other)
            world.net.cut(other, "fra")
        unanswered = await backend.send("fra", "3")
        assert unanswered[0] in (0, 503)
        assert shown(ann)[-1] == b"3"
        world.machines["fra"].crash(power=True)
        # The backend goes on in another IDC, and repeats all that it has doubts about.
        answers = [await backend.send("iad", f"{number}") for number in range(4)]
        assert [status for status, _ in answers] == [200] * 4
        assert [answer["known"] for _, answer in answers] == [True, True, True, False]
        assert (await backend.ask("iad", "PUT", f"/v1/groups/{GROUP}", made))[0] == 200
        path = f"/v1/groups/{GROUP}"
        change = {"join": ["carl"], "roles": [{"uid": "bob", "role": "owner"}]}
        assert (await backend.ask("iad", "PATCH", path, change))[0] == 200
        await stage.until(lambda: ann.idc not in ("", "fra"), 60)
        assert await backend.online("sin", "ann") == {ann.idc}
        for other in ("iad", "sin"):
            world.net.heal("fra", other)
            world.net.heal(other, "fra")
        world.machines["fra"].start()
        await stage.until(lambda: world.machines["fra"].serving, 60)
        await asyncio.sleep(3)
        # Its copy of the last message has come back, and is the same message.
        contents = [b"0", b"1", b"2", b"3"]
        for idc in ALL:
            status, answer = await backend.send(idc, "3")
            assert (status, answer["known"]) == (200, True), idc
            group = (await backend.ask(idc, "GET", path))[1]
            assert (group["members"], group["owner"]) == (["ann", "bob", "carl"], "bob"), idc
        await stage.until(lambda: shown(ann) == shown(bob) == contents, 20)

    play(tmp_path / "sim", script)


def test_a_kick_by_a_service_reaches_every_idc(tmp_path: Path) -> None:
    async def script(stage: Stage) -> None:
        backend = Backend(stage.world)
        bob = await stage.device("bob", "p", "iad")
        assert (await backend.ask("sin", "POST", "/v1/users/bob/kick", {}))[0] == 200
        await stage.until(lambda: bob.idc == "", 10)
        assert await backend.online("fra", "bob") == set()

    play(tmp_path / "sim", script)
