"""Whom messages are encrypted for: what is asked of the service, when, and what is not believed."""

from __future__ import annotations

import asyncio

import pytest

from imcore.errors import Code
from imcore.media import MediaName, MediaRef
from imcore.proto import client_pb2 as pb
from imcore.runtime import SystemClock
from services.sdk.core.sealed import Crypt
from services.sdk.errors import NotConnected, RequestRefused, SdkError, SendFailed
from services.sdk.sealing import (
    AGAIN_S,
    FRESH_S,
    NO_KEYS,
    PLAIN_FILE,
    SEALED_FILE,
    Sealing,
    check_files,
)

DIRECT = "d:ann:bob"
KEY = b"k" * 32


class Clock(SystemClock):
    at = 0.0

    def now(self) -> float:
        return self.at

    def wall_ms(self) -> int:
        return round(self.at * 1000)


def crypt(uid: str, rows: dict[str, bytes]) -> Crypt:
    def stored(name: str) -> None:
        rows[name] = made.row(name)

    made = Crypt(uid, "phone", KEY, rows, stored, lambda *met: None, lambda came: None)
    return made


class Bench:
    """A device of ann's, and a service that bob has published keys to."""

    def __init__(self, rows: dict[str, bytes] | None = None) -> None:
        self.rows: dict[str, bytes] = rows if rows is not None else {}
        self.clock = Clock()
        self.bob = crypt("bob", {})
        self.devices = [self.bob.own_keys(0)]
        self.encrypted, self.connected = True, True
        self.refusal: SdkError | None = None
        self.stopped: SdkError | None = None
        self.asked: list[str] = []
        self.sealing = Sealing(
            crypt("ann", self.rows), self.clock, self.ask, self.stored,
            lambda: self.connected, lambda: self.stopped, lambda request: None,
        )  # fmt: skip

    async def stored(self) -> None:
        return

    async def ask(self, request: pb.Request) -> pb.Response:
        self.asked.append(request.WhichOneof("body") or "")
        await asyncio.sleep(0)
        if not self.connected or self.stopped is not None:
            raise NotConnected("no connection")
        if self.refusal is not None:
            raise self.refusal
        answer = pb.DeviceKeysOk(encrypted=self.encrypted)
        if self.encrypted or request.device_keys.wanted:
            answer.devices.extend(self.devices)
        return pb.Response(device_keys_ok=answer)

    async def whom(self) -> list[str] | None:
        """Encrypts for them, and has that stored."""
        async with self.sealing.turn(DIRECT) as recipients:
            if recipients is None:
                return None
            content = self.sealing.seal(DIRECT, b"x", b"", recipients)
            self.sealing.crypt.confirm(DIRECT, content)
            return [f"{each.uid}/{each.device}" for each in recipients]


async def test_the_service_is_asked_once_and_again_after_a_minute_or_when_it_may_have_changed() -> (
    None
):
    bench = Bench()
    assert [await bench.whom() for _ in range(3)] == [["bob/phone"]] * 3
    assert len(bench.asked) == 1
    bench.clock.at = FRESH_S
    assert await bench.whom() == ["bob/phone"] and len(bench.asked) == 2
    bench.sealing.forget(DIRECT)
    assert await bench.whom() == ["bob/phone"] and len(bench.asked) == 3


async def test_what_is_not_encrypted_goes_as_it_is_until_it_is_told_otherwise() -> None:
    bench = Bench()
    bench.encrypted = False
    assert await bench.whom() is None
    bench.clock.at = 10 * FRESH_S
    assert await bench.whom() is None and len(bench.asked) == 1
    bench.sealing.came_encrypted(DIRECT, readable=False)  # anybody can say so: it is asked
    assert await bench.whom() is None and len(bench.asked) == 2
    bench.sealing.came_encrypted(DIRECT, readable=True)
    assert await bench.whom() == ["bob/phone"]


async def test_a_service_that_says_it_is_not_encrypted_any_more_is_not_believed() -> None:
    bench = Bench()
    await bench.whom()
    bench.encrypted = False
    bench.sealing.forget()
    assert await bench.whom() == ["bob/phone"]
    again = Bench(bench.rows)  # nor after a restart
    again.devices, again.encrypted = bench.devices, False
    assert await again.whom() == ["bob/phone"]


async def test_without_a_connection_the_last_devices_are_taken_also_after_a_restart() -> None:
    bench = Bench()
    await bench.whom()
    bench.connected, bench.clock.at = False, 10 * FRESH_S
    assert await bench.whom() == ["bob/phone"]
    again = Bench(bench.rows)
    again.connected = False
    assert await again.whom() == ["bob/phone"] and not again.asked


async def test_where_the_service_does_not_say_the_last_ones_are_taken_for_a_while() -> None:
    bench = Bench()
    await bench.whom()
    bench.refusal, bench.clock.at = NotConnected("not whole again yet"), FRESH_S
    assert await bench.whom() == ["bob/phone"] and len(bench.asked) == 2
    bench.clock.at += AGAIN_S - 1
    assert await bench.whom() == ["bob/phone"] and len(bench.asked) == 2
    bench.clock.at += 1
    bench.refusal, bench.devices = None, [crypt("bob", {}).own_keys(0)]
    bench.devices[0].device = "tab"
    await asyncio.gather(bench.whom(), return_exceptions=True)
    assert len(bench.asked) == 3


async def test_the_last_devices_are_those_too_that_may_have_the_key() -> None:
    """Of a message whose outcome is not known: else the next one would not be for them."""
    bench = Bench()
    async with bench.sealing.turn(DIRECT) as recipients:
        assert recipients is not None
        bench.sealing.seal(DIRECT, b"x", b"", recipients)
    again = Bench(bench.rows)
    again.connected = False
    assert await again.whom() == ["bob/phone"]


async def test_a_first_message_waits_for_a_connection_and_in_order() -> None:
    bench = Bench()
    bench.connected = False
    first, second = asyncio.ensure_future(bench.whom()), asyncio.ensure_future(bench.whom())
    await asyncio.sleep(0.01)
    assert not first.done() and not second.done()
    bench.connected = True
    assert await first == await second == ["bob/phone"]
    stopping = Bench()
    stopping.connected = False
    waiting = asyncio.ensure_future(stopping.whom())
    await asyncio.sleep(0.01)
    stopping.stopped = SdkError("the client is closed")
    with pytest.raises(SendFailed) as failed:
        await waiting
    assert failed.value.code == Code.UNAVAILABLE


async def test_nothing_is_encrypted_for_nobody() -> None:
    bench = Bench()
    eve = crypt("eve", {}).own_keys(0)  # named by a service that lies: bob's conversation has two
    bench.devices = [eve]
    with pytest.raises(SendFailed) as nobody:
        await bench.whom()
    assert nobody.value.code == NO_KEYS
    bench.refusal = RequestRefused(Code.FORBIDDEN, "not a member")
    bench.sealing.forget()
    with pytest.raises(SendFailed) as refused:
        await bench.whom()
    assert refused.value.code == Code.FORBIDDEN


async def test_a_file_is_encrypted_where_messages_are() -> None:
    bench = Bench()
    assert await bench.sealing.encrypts(DIRECT)
    assert await bench.sealing.encrypts(DIRECT) and len(bench.asked) == 1
    plain = Bench()
    plain.encrypted = False
    assert not await plain.sealing.encrypts(DIRECT)
    assert not await plain.sealing.encrypts(DIRECT) and len(plain.asked) == 1
    plain.sealing.came_encrypted(DIRECT, readable=True)  # the other one has switched it on
    assert await plain.sealing.encrypts(DIRECT)
    again = Bench(bench.rows)
    again.connected = False
    assert await again.sealing.encrypts(DIRECT)
    nowhere = Bench()
    nowhere.connected = False
    with pytest.raises(NotConnected):
        await nowhere.sealing.encrypts(DIRECT)


async def test_what_an_encrypted_message_names_is_encrypted_and_nothing_else_is() -> None:
    plain = MediaRef(MediaName("fra", "0" * 64, "0" * 32), 1, "a/b")
    sealed = plain._replace(secret=KEY)
    check_files([sealed, sealed], True)
    check_files([plain, plain], False)
    for files, encrypted, code in (
        ([sealed, plain], True, PLAIN_FILE),
        ([plain, sealed], False, SEALED_FILE),
    ):
        with pytest.raises(SendFailed) as refused:
            check_files(files, encrypted)
        assert refused.value.code == code
