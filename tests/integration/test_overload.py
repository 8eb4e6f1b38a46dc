"""What is too much is turned away, with a code and a time, and costs the others nothing."""

from __future__ import annotations

import asyncio
import time
from collections import Counter

import pytest

from imcore.attest import RegionKeys
from imcore.errors import BadInput, Code, ImError, Overloaded, Refused, Unavailable
from imcore.proto import client_pb2 as pb
from imcore.region.model import Limits
from imcore.runtime import ManualClock, SystemClock
from imcore.tls import gateway_ssl_context
from services.gateway.config import GatewayConfig
from services.im.load import ConversationLoad
from services.im.pulls import Pulls
from services.im.server import KV_FAILURES
from services.im.testing import OpenIdc
from services.node.risk import Guarded, rules_of
from services.node.testing_ipconf import IpconfSite
from services.ports import Backlog, Batch
from services.sdk.testing.app import App, eventually
from services.sdk.testing.scripted import Region
from services.state.requests import BREAKER_FAILURES
from services.state.testing import Front

KEYS = RegionKeys({1: b"k" * 32}, 1)


def send(cid: int = 1, conversation: str = "d:ann:bob") -> pb.Request:
    return pb.Request(send=pb.Send(conversation=conversation, cid=cid, content=b"hi"))


def heartbeat() -> pb.Request:
    return pb.Request(heartbeat=pb.Heartbeat())


# ------------------------------------------------------------------------- at the gateways


async def test_a_gateway_lets_in_at_a_rate_and_tells_the_others_different_times() -> None:
    clock = ManualClock()
    async with Front(KEYS, limits=GatewayConfig(connects_per_s=5), clock=clock) as front:
        for number in range(5):
            await front.connect(f"u{number}")
        waits = []
        for _ in range(5):
            late = await front.dial()
            close = (await late.event("close")).close
            assert close.reason == "overloaded"
            waits.append(close.retry_after_ms)
        assert waits == sorted(set(waits)) and 600 < waits[-1] - waits[0] < 1_000
        clock.advance(0.3)
        await front.connect("late")  # there is room again


# ------------------------------------------------------------------------------ in the IDC


async def test_one_user_with_many_devices_is_one_user() -> None:
    limits = Limits(user_requests_per_s=10)
    async with Front(KEYS, idc_limits=limits, clock=ManualClock()) as front:
        devices = [(await front.connect("ann", device=f"d{n}"))[0] for n in range(4)]
        bob, _ = await front.connect("bob")
        answers = [await device.ask(send(cid)) for cid in range(10) for device in devices]
        refused = [a.error for a in answers if a.HasField("error")]
        assert len(refused) == 20
        assert {error.code for error in refused} == {"overloaded"}
        assert all(error.retry_after_ms > 0 for error in refused)
        assert not (await bob.ask(send())).HasField("error")
        assert (await devices[0].ask(heartbeat())).HasField("heartbeat_ok")  # never counted


async def test_an_idc_that_works_on_too_much_takes_no_more() -> None:
    async with Front(KEYS, idc_limits=Limits(idc_in_flight=10)) as front:
        ann, _ = await front.connect("ann")
        bob, _ = await front.connect("bob")
        front.im.mute = True
        waiting = [ann.send(send(cid)) for cid in range(10)]
        answer = await bob.ask(send())
        assert (answer.error.code, answer.error.retry_after_ms) == ("overloaded", 500)
        for future in waiting:
            future.cancel()


async def test_an_im_that_answers_nothing_is_not_asked_for_a_while() -> None:
    clock = ManualClock()
    async with Front(KEYS, clock=clock) as front:
        ann, _ = await front.connect("ann")
        front.im.mute = True
        slow = [ann.send(send(cid)) for cid in range(BREAKER_FAILURES)]
        await eventually(lambda: front.state.queued()["requests"] == BREAKER_FAILURES)
        clock.advance(20.0)
        assert {(await answer).error.code for answer in slow} == {"deadline"}
        # At once: no deadline comes while the clock stands.
        refused = [(await ann.ask(send(cid))).error for cid in range(3)]
        assert {error.code for error in refused} == {"unavailable"}
        assert all(error.retry_after_ms > 0 for error in refused)
        late = await front.dial()
        assert (await late.ask(front.hello("bob"))).error.code == "unavailable"
        front.im.mute = False
        async with asyncio.timeout(5):
            while (await ann.ask(send(99))).HasField("error"):
                clock.advance(0.4)
        assert front.state.load()["breaker_open"] is False
        assert front.state.load()["breaker_opened"] == 1


async def test_deadlines_that_a_client_sets_itself_open_no_breaker() -> None:
    async with Front(KEYS) as front:
        mallory, _ = await front.connect("mallory")
        front.im.mute = True
        hasty = [mallory.send(pb.Request(send=send(cid).send, deadline_ms=1)) for cid in range(100)]
        assert {(await answer).error.code for answer in hasty} == {"deadline"}
        front.im.mute = False
        bob, _ = await front.connect("bob")
        assert not (await bob.ask(send())).HasField("error")


async def test_a_loop_that_does_not_keep_up_sheds_sends_and_keeps_sessions_alive() -> None:
    async with Front(KEYS, idc_limits=Limits(delay_ms=20)) as front:
        # So many that there are some of either kind, whichever users' turn it is.
        clients = [(await front.connect(f"u{number}"))[0] for number in range(100)]
        until = time.monotonic() + 20
        while front.state.load()["served_share"] >= 0.5:
            assert time.monotonic() < until
            time.sleep(0.05)  # noqa: ASYNC251 - the work that takes too long
            await asyncio.sleep(0)
        answers = [await client.ask(send()) for client in clients]
        errors = [answer.error for answer in answers if answer.HasField("error")]
        assert {error.code for error in errors} == {"overloaded"} and len(errors) < 100
        assert all(error.retry_after_ms >= 500 for error in errors)
        for client in clients:
            assert (await client.ask(heartbeat())).HasField("heartbeat_ok")
        await eventually(lambda: front.state.load()["served_share"] == 1.0)
        assert not any([(await client.ask(send())).HasField("error") for client in clients])


async def test_sends_are_shed_while_folding_is_behind_though_acks_are_fast() -> None:
    async with Front(KEYS, idc_limits=Limits(fold_delay_ms=500)) as front:
        clients = [(await front.connect(f"u{number}"))[0] for number in range(100)]

        def grows_and_is_refused() -> bool:
            front.im.waiting = Backlog(0.6, front.im.waiting.records + 1)
            return front.state.load()["served_share"] < 0.7

        await eventually(grows_and_is_refused)
        answers = [await client.ask(send()) for client in clients]
        errors = [answer.error for answer in answers if answer.HasField("error")]
        assert {error.code for error in errors} == {"overloaded"} and len(errors) < 100
        front.im.waiting = Backlog(0.4, 10)
        await eventually(lambda: front.state.load()["served_share"] == 1.0)


async def test_a_kv_that_is_slower_than_the_log_shows_how_far_it_is_behind(
    open_idc: OpenIdc, monkeypatch: pytest.MonkeyPatch
) -> None:
    fra = await open_idc(others=())
    ann, commit = fra.session("ann"), fra.kv.commit
    assert not (await fra.send(ann, "d:ann:bob", 1)).HasField("error")
    await fra.folded()
    assert fra.im.backlog() == (0.0, 0)

    async def slow(batch: Batch) -> None:
        await asyncio.sleep(0.2)
        await commit(batch)

    monkeypatch.setattr(fra.kv, "commit", slow)
    monkeypatch.setattr("services.im.applier._READ_BYTES", 1000)  # a few messages a batch
    cid = 1
    async with asyncio.timeout(30):
        while fra.im.backlog().oldest_s <= 0.5:
            for _ in range(20):
                cid += 1
                assert not (await fra.send(ann, "d:ann:bob", cid)).HasField("error")
            await asyncio.sleep(0.02)
    monkeypatch.undo()
    await fra.folded()
    assert fra.im.backlog() == (0.0, 0)


async def test_a_huge_group_waits_while_others_are_served(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    fra.im.load = ConversationLoad(Limits(conversation_deliveries_per_s=1_000), 500)
    ann, eve = fra.session("ann"), fra.session("eve")
    await fra.create(ann, "g:huge", *(f"u{number}" for number in range(499)))
    await fra.folded()
    stranger = [await fra.send(eve, "g:huge", cid) for cid in range(1, 20)]
    assert {answer.error.code for answer in stranger} == {Code.FORBIDDEN}  # and took nothing of it
    sent = [await fra.send(ann, "g:huge", cid) for cid in range(1, 11)]
    errors = [answer.error for answer in sent if answer.HasField("error")]
    assert len(errors) >= 4 and {error.code for error in errors} == {Code.OVERLOADED}
    assert all(error.retry_after_ms > 0 for error in errors)
    for cid in range(1, 101):
        assert not (await fra.send(ann, "d:ann:bob", cid)).HasField("error")


class AwayKv:
    """Reads wait and fail, as those of an engine that does not answer."""

    def __init__(self) -> None:
        self.asked = 0

    async def scan(self, *_: object) -> list[tuple[bytes, bytes]]:
        self.asked += 1
        await asyncio.sleep(0.6)
        raise Unavailable("the KV is away")


async def test_reads_of_a_kv_that_is_away_fail_at_once_after_a_while(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    ann = fra.session("ann")
    await fra.send(ann, "d:ann:bob", 1)
    await fra.folded()
    kept, away = fra.im.kv, AwayKv()
    fra.im.kv = away  # type: ignore[assignment]
    fra.im.pulls = Pulls(fra.im.kv, fra.im.keys)  # with nothing in memory
    slow = await asyncio.gather(*(fra.pull(ann, "d:ann:bob") for _ in range(KV_FAILURES)))
    assert {answer.error.code for answer in slow} == {Code.UNAVAILABLE}
    asked = away.asked
    for _ in range(50):
        error = (await fra.pull(ann, "d:ann:bob")).error
        assert error.code == Code.UNAVAILABLE and error.retry_after_ms > 0
    assert away.asked == asked  # so nobody waited for it
    assert not (await fra.send(ann, "d:ann:bob", 2)).HasField("error")  # a send needs no read here
    fra.im.kv = kept
    fra.im.pulls = Pulls(kept, fra.im.keys)
    async with asyncio.timeout(5):
        while (await fra.pull(ann, "d:ann:bob")).HasField("error"):  # noqa: ASYNC110 - it is asked
            await asyncio.sleep(0.02)
    assert not fra.im.kv_breaker.is_open


# ------------------------------------------------------------------------- ipconf and SDK


async def test_ipconf_answers_at_a_rate(tmp_path, pki_dir) -> None:
    site = IpconfSite(tmp_path, pki_dir, Limits(lookups_per_s=3))
    site.clock = ManualClock()
    await site.start()
    await site.holder.offer(site.policy())
    statuses, waits = [], []
    async with site.client() as http:
        headers = {"Authorization": f"Bearer {site.token()}"}
        for _ in range(6):
            async with http.get(f"{site.url}/v1/gateways", headers=headers) as answer:
                statuses.append(answer.status)
                if answer.status == 429:
                    error = (await answer.json())["error"]
                    assert error["code"] == "overloaded"
                    waits.append(error["retry_after_ms"])
    await site.stop()
    assert statuses[:3] == [200] * 3 and statuses[-1] == 429
    assert waits == sorted(set(waits)) and waits[0] > 0


async def asked(site: IpconfSite, http, token: str, address: str = "") -> tuple[int, int]:
    """Status, and what it says about when to ask again."""
    headers = {"Authorization": f"Bearer {token}"}
    if address:
        headers["X-Forwarded-For"] = address
    async with http.get(f"{site.url}/v1/gateways", headers=headers) as answer:
        error = (await answer.json()).get("error", {})
        assert (error.get("code") == "overloaded") == (answer.status == 429)
        return answer.status, error.get("retry_after_ms", 0)


async def test_one_user_who_asks_ipconf_without_end_shuts_nobody_out(tmp_path, pki_dir) -> None:
    site = IpconfSite(tmp_path, pki_dir, Limits(lookups_per_s=50))
    site.clock = clock = ManualClock()
    await site.start()
    await site.holder.offer(site.policy())
    async with site.client() as http:
        found = [await asked(site, http, site.token("mallory")) for _ in range(300)]
        assert Counter(status for status, _ in found)[200] == 50
        waits = [wait_ms for status, wait_ms in found if status == 429]
        assert min(waits) >= 1 and max(waits) <= 200
        clock.advance(0.2)  # in which ipconf has room for ten more
        found = [await asked(site, http, site.token("mallory")) for _ in range(100)]
        assert Counter(status for status, _ in found)[200] == 1
        for number in range(9):
            assert await asked(site, http, site.token(f"u{number}")) == (200, 0)
    await site.stop()


async def test_a_device_that_moves_about_is_not_kept_from_ipconf(tmp_path, pki_dir) -> None:
    """A user's ten devices, each of which loses its gateway, and then others, four times."""
    site = IpconfSite(tmp_path, pki_dir)
    await site.start()
    await site.holder.offer(site.policy())
    async with site.client() as http:
        for _ in range(40):
            assert await asked(site, http, site.token("ann")) == (200, 0)
    await site.stop()


async def test_one_address_takes_its_share_of_ipconf_with_tokens_and_without(
    tmp_path, pki_dir
) -> None:
    """The proxy in front is believed, and has no bound itself: these come from 127.0.0.1, which
    the region file lists."""
    site = IpconfSite(tmp_path, pki_dir, Limits(address_lookups_per_s=20))
    site.clock = ManualClock()
    await site.start()
    await site.holder.offer(site.policy())
    async with site.client() as http:
        tokens = [site.token(f"u{number}") for number in range(40)]
        found = [await asked(site, http, token, "81.2.69.142") for token in tokens * 8]
        statuses = Counter(status for status, _ in found)
        assert set(statuses) == {200, 429} and 100 <= statuses[200] <= 101
        assert max(wait_ms for _, wait_ms in found) <= 50
        assert {(await asked(site, http, "none", "81.2.69.142"))[0] for _ in range(5)} == {429}
        report = {"Authorization": "none", "X-Forwarded-For": "::ffff:81.2.69.142"}
        async with http.post(f"{site.url}/v1/reports", headers=report, data="{}") as answer:
            assert answer.status == 429
        assert await asked(site, http, site.token("bob"), "81.2.69.143") == (200, 0)
        assert await asked(site, http, site.token("eve")) == (200, 0)
        # Whoever has one address of such a network has them all.
        found = [await asked(site, http, "none", f"2001:db8:1:2::{n:x}") for n in range(200)]
        assert {status for status, _ in found} == {401, 429}
        assert (await asked(site, http, "none", "2001:db8:1:3::1"))[0] == 401
    await site.stop()


@pytest.fixture
async def region(pki_dir):
    found = await Region(gateway_ssl_context(pki_dir, "fra")).start("fra", "iad")
    yield found
    await found.stop()


async def test_a_client_that_ipconf_turns_away_waits_and_goes_nowhere_else(region, ca_file) -> None:
    region.parameters["fast_retries"] = 0
    async with App(region, ca_file) as ann:
        lookups, connects = len(region.lookups), len(region.idcs["iad"].connects)
        region.ipconf_overloaded_ms = 400
        begun = time.monotonic()
        region.idcs["fra"].connections[-1].abort()
        await eventually(lambda: ann.connections[-1:] == [""])
        await eventually(lambda: len(ann.connections) > 1 and ann.connections[-1] != "")
        assert time.monotonic() - begun >= 0.4
        assert len(region.lookups) - lookups == 2  # the one that was refused, and the next
        assert len(region.idcs["iad"].connects) == connects


# ------------------------------------------------------------------------------ risk rules


class Rules:
    """Of an operator: no sign-in from one address, no word of one kind."""

    def sign_in(self, uid: str, device: str, address: str) -> ImError | None:
        if uid == "mallory":
            return Refused(Code.FORBIDDEN, "the account is locked")
        return Overloaded("too many sign-ins", 700) if uid == "eve" else None

    def send(self, uid: str, device: str, conversation: str, content: bytes) -> ImError | None:
        return Refused(Code.FORBIDDEN, "not that") if b"spam" in content else None


class Broken:
    def sign_in(self, uid: str, device: str, address: str) -> ImError | None:
        raise RuntimeError("a mistake")

    def send(self, uid: str, device: str, conversation: str, content: bytes) -> ImError | None:
        return "no"  # type: ignore[return-value]


async def test_risk_rules_judge_sign_ins() -> None:
    async with Front(KEYS, risk=Guarded(Rules(), SystemClock())) as front:
        await front.connect("ann")
        told = {}
        for uid in ("mallory", "eve"):
            client = await front.dial()
            error = (await client.ask(front.hello(uid))).error
            told[uid] = (error.code, error.retry_after_ms)
            assert (await client.event("close")).close.reason == error.code
        assert told == {"mallory": ("forbidden", 0), "eve": ("overloaded", 700)}
        assert {session.uid for session in front.state.sessions()} == {"ann"}


async def test_risk_rules_judge_sends_before_anything_is_written(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    fra.im.risk = Guarded(Rules(), SystemClock())
    ann = fra.session("ann")
    assert not (await fra.send(ann, "d:ann:bob", 1)).HasField("error")
    end = fra.end()
    assert (await fra.send(ann, "d:ann:bob", 2, b"spam")).error.code == Code.FORBIDDEN
    assert fra.end() == end


def test_rules_that_fail_stop_nobody_and_say_so(caplog: pytest.LogCaptureFixture) -> None:
    clock = ManualClock()
    rules = Guarded(Broken(), clock)
    assert not rules.alarm
    for _ in range(100):
        assert rules.sign_in("ann", "phone", "192.0.2.1") is None
        assert rules.send("ann", "phone", "d:ann:bob", b"x") is None
    assert rules.alarm and len(caplog.records) == 1
    clock.advance(61)
    assert not rules.alarm


def test_rules_are_named_by_the_region_file() -> None:
    clock = SystemClock()
    assert rules_of(None, clock).sign_in("ann", "phone", "") is None
    assert rules_of("services.ports:NoRisk", clock).send("ann", "phone", "d:a:b", b"") is None
    for wrong in ("no.such.module:Rules", "services.ports:Nothing", "builtins:dict"):
        with pytest.raises(BadInput, match="risk_rules"):
            rules_of(wrong, clock)
