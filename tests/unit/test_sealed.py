"""Encryption of one device for others: sessions, shares of their keys, trust, and what comes from
those who mean no good. Pure but for the library's random numbers."""

from __future__ import annotations

import os
import random
import sys

import pytest

from imcore.limits import CONTENT_BYTES_MAX, SHARES_MAX
from imcore.proto import client_pb2 as pb
from imcore.words import ClientKey
from services.sdk.core import sealed as core
from services.sdk.core.sealed import Crypt, Opened
from services.sdk.errors import SdkError, SendFailed

DIRECT = "d:ann:bob"
GROUP = "g:1"
KEY = b"k" * 32


class Device:
    """With a store that has what was told to be stored."""

    def __init__(self, uid: str, device: str = "phone", stored: dict[str, bytes] | None = None):
        self.uid, self.device = uid, device
        self.stored = dict(stored or {})
        self.met: list[tuple[str, str, bool]] = []
        self.came: list[str] = []
        self.cid = 0
        self.crypt = Crypt(
            uid, device, KEY, self.stored, self._store,
            lambda uid, device, shown, changed: self.met.append((uid, device, changed)),
            self.came.append,
        )  # fmt: skip
        self.keys = self.crypt.own_keys(0)

    def _store(self, name: str) -> None:
        self.stored[name] = self.crypt.row(name)

    def again(self) -> Device:
        """The process has ended, and begun again with what was stored."""
        return Device(self.uid, self.device, self.stored)

    def says(
        self, content: bytes, *to: Device, where: str = DIRECT, now_ms: int = 0
    ) -> tuple[ClientKey, bytes]:
        recipients = self.crypt.recipients(where, [each.keys for each in to])
        said = pb.Said(conversation=where, content=content)
        self.cid += 1
        key = ClientKey(self.uid, self.device, "o", where, self.cid)
        return key, self.crypt.seal(where, said, recipients, now_ms)

    def reads(self, message: tuple[ClientKey, bytes]) -> bytes | str:
        opened = self.crypt.open(*message)
        return opened.why or opened.content


def shares(message: tuple[ClientKey, bytes]) -> list[str]:
    return [f"{each.uid}/{each.device}" for each in pb.Sealed.FromString(message[1]).shares]


def test_what_is_said_is_read_by_those_it_is_for_and_by_nobody_else() -> None:
    ann, tab, bob, eve = Device("ann"), Device("ann", "tab"), Device("bob"), Device("eve")
    first = ann.says(b"a secret", ann, tab, bob, eve)
    assert b"a secret" not in first[1]
    assert shares(first) == ["ann/tab", "bob/phone"]  # and not eve, whatever a server says
    assert [each.reads(first) for each in (ann, tab, bob)] == [b"a secret"] * 3
    assert eve.reads(first) == core.NO_KEY
    ann.crypt.confirm(DIRECT, first[1])
    second = ann.says(b"more", ann, tab, bob)
    assert shares(second) == []
    assert bob.reads(second) == b"more"
    answer = bob.says(b"an answer", ann, tab)
    assert [each.reads(answer) for each in (ann, tab, bob)] == [b"an answer"] * 3
    assert bob.reads(first) == b"a secret"  # as often as one likes


def test_the_key_comes_along_until_one_that_brings_it_is_stored() -> None:
    ann, bob = Device("ann"), Device("bob")
    refused = ann.says(b"1", bob)  # it never comes to bob
    stored = ann.says(b"2", bob)
    ann.crypt.confirm(DIRECT, stored[1])
    third = ann.says(b"3", bob)
    assert [shares(each) for each in (refused, stored, third)] == [["bob/phone"]] * 2 + [[]]
    assert bob.reads(third) == core.NO_KEY
    assert bob.reads(stored) == b"2"
    assert bob.came == [DIRECT]
    assert bob.reads(third) == b"3"
    assert bob.reads(refused) == b"1"  # later, with a key from further back
    assert bob.came == [DIRECT, DIRECT]


@pytest.mark.parametrize("seed", range(2))
def test_in_whatever_order_messages_come_and_however_often_devices_are_started(seed: int) -> None:
    rng = random.Random(seed)
    devices = [Device("ann"), Device("ann", "tab"), Device("bob"), Device("bob", "tab")]
    sent: list[tuple[tuple[ClientKey, bytes], bytes]] = []
    for number in range(120):
        at = rng.randrange(len(devices))
        sender = devices[at]
        content = b"%d" % number
        message = sender.says(content, *devices)
        sent.append((message, content))
        if rng.random() < 0.8:
            sender.crypt.confirm(DIRECT, message[1])
        for other, device in enumerate(devices):
            if rng.random() < 0.1:
                cid = device.cid
                devices[other] = device.again()
                devices[other].cid = cid
            for message, content in rng.sample(sent, min(2, len(sent))):
                assert devices[other].reads(message) in (content, core.NO_KEY)
    for device in devices:
        rng.shuffle(sent)
        for message, _ in sent:
            device.reads(message)
        for message, content in sent:
            assert device.reads(message) == content


def test_a_session_ends_after_so_many_messages_and_so_long() -> None:
    ann, bob = Device("ann"), Device("bob")

    def session(now_ms: int = 0, where: str = DIRECT) -> str:
        message = ann.says(b"x", bob, where=where, now_ms=now_ms)
        ann.crypt.confirm(where, message[1])
        return pb.Sealed.FromString(message[1]).session

    found = [session() for _ in range(2 * core.DIRECT_MESSAGES)]
    assert len(set(found)) == 2 and found == sorted(found, key=found.index)
    assert len({session(where=GROUP) for _ in range(core.GROUP_MESSAGES)}) == 1
    assert session(1) != session(core.SESSION_MS + 1)


def test_whoever_is_gone_has_no_key_of_what_comes_and_a_newcomer_none_of_what_was() -> None:
    ann, bob, eve = Device("ann"), Device("bob"), Device("eve")
    first = ann.says(b"1", bob, where=GROUP)
    ann.crypt.confirm(GROUP, first[1])
    second = ann.says(b"2", bob, eve, where=GROUP)  # eve has come
    ann.crypt.confirm(GROUP, second[1])
    assert shares(second) == ["eve/phone"]
    assert [eve.reads(each) for each in (first, second)] == [core.NO_KEY, b"2"]
    assert [bob.reads(each) for each in (first, second)] == [b"1", b"2"]
    third = ann.says(b"3", eve, where=GROUP)  # bob has gone
    assert pb.Sealed.FromString(third[1]).session != pb.Sealed.FromString(second[1]).session
    assert [each.reads(third) for each in (bob, eve)] == [core.NO_KEY, b"3"]


def test_whoever_may_have_got_a_key_counts_as_having_it() -> None:
    """The message that brought it is not known to be stored, and may have been."""
    ann, bob, eve = Device("ann"), Device("bob"), Device("eve")
    brought = ann.says(b"1", bob, eve, where=GROUP)
    after = ann.again().says(b"2", bob, where=GROUP)  # eve has left meanwhile
    assert eve.reads(brought) == b"1"
    assert eve.reads(after) == core.NO_KEY
    assert bob.reads(after) == b"2"


def test_other_keys_of_a_device_are_told_and_not_used_before_they_are_trusted() -> None:
    ann, bob = Device("ann"), Device("bob")
    first = ann.says(b"1", bob)
    assert bob.reads(first) == b"1"
    ann.crypt.confirm(DIRECT, first[1])
    new = Device("bob")  # the phone was lost, or a server makes one up
    second = ann.says(b"2", new)
    assert ann.met == [("bob", "phone", False), ("bob", "phone", True)]
    assert shares(second) == [] and new.reads(second) == core.NO_KEY
    answer = new.says(b"it is me", ann)
    assert ann.reads(answer) == core.IDENTITY_CHANGED
    [known] = ann.crypt.known("bob")
    assert (known.fingerprint, known.changed_to, known.verified) == (
        bob.crypt.own_fingerprint(), new.crypt.own_fingerprint(), False,
    )  # fmt: skip
    with pytest.raises(KeyError):
        ann.crypt.trust("bob", "phone", "0000")
    ann.crypt.trust("bob", "phone", new.crypt.own_fingerprint())
    assert ann.came == [""]
    assert ann.reads(answer) == b"it is me"
    assert new.reads(ann.says(b"3", new)) == b"3"
    [known] = ann.again().crypt.known("bob")
    assert known.verified and not known.changed_to
    assert len(ann.met) == 2


def test_a_prekey_is_made_anew_and_the_one_before_still_serves() -> None:
    ann, bob = Device("ann"), Device("bob")
    first = ann.says(b"1", bob)
    assert bob.crypt.own_keys(1) == bob.keys
    later = bob.crypt.own_keys(core.PREKEY_MS)
    assert (later.identity, later.prekey != bob.keys.prekey) == (bob.keys.identity, True)
    again = bob.again()
    assert again.reads(first) == b"1"
    eve = Device("eve")
    again.keys = later
    assert again.reads(eve.says(b"2", again, where="d:bob:eve")) == b"2"


def test_keys_that_lead_nowhere_cost_their_device_its_share_alone() -> None:
    ann, bob, tab = Device("ann"), Device("bob"), Device("bob", "tab")
    lib = core.vodozemac()
    account = lib.Account()
    null = pb.DeviceKeys(uid="bob", device="null", identity=bytes(32), prekey=bytes(32))
    null.signing = core._raw(account.ed25519_key.to_base64())
    null.signature = core._raw(account.sign(core.signed_bytes(null)).to_base64())
    forged, foreign = pb.DeviceKeys(), pb.DeviceKeys()
    forged.CopyFrom(tab.keys)
    forged.prekey = b"\1" * 32
    foreign.CopyFrom(tab.keys)
    foreign.device = "another"
    given = [null, forged, foreign, pb.DeviceKeys(), pb.DeviceKeys(uid="a/b", device="c"), bob.keys]
    recipients = ann.crypt.recipients(DIRECT, given)
    assert recipients == [null, bob.keys]
    sealed = ann.crypt.seal(DIRECT, pb.Said(conversation=DIRECT, content=b"1"), recipients, 0)
    message = (ClientKey("ann", "phone", "o", DIRECT, 1), sealed)
    assert shares(message) == ["bob/phone"]
    assert bob.reads(message) == b"1"


def test_what_stands_under_another_name_is_not_read() -> None:
    ann, bob, eve = Device("ann"), Device("bob"), Device("eve")
    first = ann.says(b"1", bob, eve, where=GROUP)
    key, content = first
    assert eve.reads(first) == b"1"
    named = {
        "conversation": (key._replace(conversation="g:2"), content),
        "user": (key._replace(uid="eve"), content),
        "device": (key._replace(device="tab"), content),
    }
    assert {bob.reads(each) for each in named.values()} == {core.FORGED}
    assert bob.reads(first) == b"1"
    assert bob.reads((key._replace(cid=2), content)) == core.REPLAYED
    assert bob.reads((key._replace(conversation="g:2"), content)) == core.FORGED
    assert bob.reads(first) == b"1"
    # A member hands a key on as its own: that is believed of nobody else's words.
    stolen = pb.Sealed.FromString(content)
    del stolen.shares[:]
    inbound = eve.crypt._session(core._inbound_name(GROUP, "ann", "phone", stolen.session))
    shared = eve.crypt._shared_key(GROUP, core._raw(inbound.export_at(0).to_base64()), bob.keys)
    eve.crypt.recipients(GROUP, [bob.keys])
    eve.crypt._share(stolen, bob.keys, shared)
    stolen.sender.CopyFrom(eve.keys)
    assert bob.reads((ClientKey("eve", "phone", "o", GROUP, 1), stolen.SerializeToString())) in (
        core.DAMAGED, core.FORGED,
    )  # fmt: skip
    assert bob.reads(first) == b"1"


def test_an_edit_is_of_its_message_and_has_its_order() -> None:
    ann, bob = Device("ann"), Device("bob")
    key, _ = first = ann.says(b"1", bob)
    order = pb.Order(hlc=7, device="phone", number=3)
    said = pb.Said(conversation=DIRECT, content=b"one", order=order)
    said.edits.uid, said.edits.device, said.edits.outbox = key.uid, key.device, key.outbox
    said.edits.conversation, said.edits.cid = key.conversation, key.cid
    edit = ann.crypt.seal(DIRECT, said, ann.crypt.recipients(DIRECT, [bob.keys]), 0)
    assert bob.reads(first) == b"1"
    assert bob.crypt.open(key, edit, order) == Opened(b"one", b"", "")
    later = pb.Order(hlc=8, device="phone", number=3)
    assert bob.crypt.open(key, edit, later).why == core.FORGED
    assert bob.crypt.open(key._replace(cid=2), edit, order).why == core.FORGED
    assert bob.crypt.open(key, edit).why == core.FORGED  # as a message
    assert bob.crypt.open(key, first[1], order).why == core.FORGED  # a message as an edit


def test_no_bytes_do_any_harm() -> None:
    ann, bob = Device("ann"), Device("bob")
    key, content = first = ann.says(b"1", bob)
    rng = random.Random(1)
    for length in (0, 1, 40, 5_000):
        assert bob.reads((key, rng.randbytes(length))) in (core.MALFORMED, core.NO_KEY)
    for _ in range(300):
        damaged = bytearray(content)
        for _ in range(rng.randint(1, 3)):
            damaged[rng.randrange(len(damaged))] = rng.randrange(256)
        assert bob.reads((key, bytes(damaged))) in (
            b"1", core.MALFORMED, core.NO_KEY, core.DAMAGED, core.FORGED, core.REPLAYED,
            core.IDENTITY_CHANGED,
        )  # fmt: skip
    assert len(bob.met) == 1
    assert bob.reads(first) == b"1"


def test_what_does_not_fit_changes_nothing() -> None:
    ann, bob = Device("ann"), Device("bob")
    before = dict(ann.stored)
    with pytest.raises(SendFailed) as large:
        ann.says(bytes(CONTENT_BYTES_MAX), bob)
    assert large.value.code == "too_large"
    del ann.stored["peer/bob/phone"]
    assert ann.stored == before
    many = [Device(f"u{number}") for number in range(SHARES_MAX + 1)]
    with pytest.raises(SendFailed) as shared:
        ann.says(b"1", *many, where=GROUP)
    assert shared.value.code == "too_large"
    key, content = ann.says(bytes(10_000), *many[1:], where=GROUP)
    assert len(content) <= CONTENT_BYTES_MAX
    assert many[-1].reads((key, content)) == bytes(10_000)


def test_without_the_library_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "vodozemac", None)
    with pytest.raises(SdkError, match=r"pip install 'imctl\[encryption\]'"):
        Device("ann")


def test_rows_are_of_one_key_and_one_device_and_hold_no_secret() -> None:
    ann, bob = Device("ann"), Device("bob")
    bob.reads(ann.says(b"a secret", bob))
    for device in (ann, bob):
        assert not any(b"a secret" in row for row in device.stored.values())
    with pytest.raises(SdkError, match="not that of this outbox"):
        Crypt("ann", "phone", os.urandom(32), ann.stored, print, print, print)
    with pytest.raises(SdkError, match="another device"):
        Crypt("ann", "tab", KEY, ann.stored, print, print, print)
    with pytest.raises(SdkError, match="32 bytes"):
        Crypt("ann", "phone", b"short", {}, print, print, print)
