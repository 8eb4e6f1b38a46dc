"""Keys of devices and the switch of a conversation over the real im role: who may what, that IDCs
agree, that plain content is refused, and what is told of encrypted content."""

from __future__ import annotations

import pytest

from imcore.convert import stamp_pb
from imcore.errors import Code
from imcore.levels import ENCRYPTION, FIRST, LEVEL
from imcore.limits import ENCRYPTED_MEMBERS_MAX, KEY_DEVICES_MAX
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from services.im import device_keys
from services.im.testing import KEYS, Idc, OpenIdc
from tests.integration.idcs import meet, pair

DIRECT = "d:ann:bob"
GROUP = "g:1"


def bundle(uid: str, device: str, fill: bytes = b"k") -> pb.DeviceKeys:
    key = fill * 32
    return pb.DeviceKeys(
        uid=uid, device=device, identity=key, signing=key, prekey=key, signature=fill * 64
    )


async def publish(
    idc: Idc, keys: pb.DeviceKeys, device: str = "", number: int = 1, uid: str = ""
) -> str:
    request = pb.PublishKeys(keys=keys, number=number)
    request.composed.CopyFrom(stamp_pb(KEYS.stamp(idc.im.hlc.last)))
    session = idc.session(uid or keys.uid, device or keys.device)
    return (await idc.ask(session, pb.Request(publish_keys=request))).error.code


async def switch_on(idc: Idc, uid: str, conversation: str = DIRECT, on: bool = True) -> str:
    request = pb.SetConversation(conversation=conversation, encrypted=on)
    request.composed.CopyFrom(stamp_pb(KEYS.stamp(idc.im.hlc.last)))
    return (await idc.ask(idc.session(uid), pb.Request(set_conversation=request))).error.code


async def asked(
    idc: Idc, conversation: str = DIRECT, uid: str = "ann", wanted: bool = False
) -> tuple[bool, list[str]]:
    """Whether it is encrypted, and whose devices are named."""
    request = pb.DeviceKeysOf(conversation=conversation, wanted=wanted)
    found: list[str] = []
    while True:
        answer = await idc.ask(idc.session(uid), pb.Request(device_keys=request))
        assert not answer.HasField("error"), answer.error
        page = answer.device_keys_ok
        found += [f"{each.uid}/{each.device}" for each in page.devices]
        if not page.next:
            return page.encrypted, found
        request.after = page.next


async def test_keys_are_published_replaced_and_taken_away(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    assert await asked(fra, wanted=True) == (False, [])
    assert not await publish(fra, bundle("ann", "phone"))
    assert not await publish(fra, bundle("bob", "phone"))
    assert not await publish(fra, bundle("bob", "tab"))
    assert await asked(fra) == (False, [])  # nobody needs them
    assert await asked(fra, wanted=True) == (False, ["ann/phone", "bob/phone", "bob/tab"])
    end = fra.end()
    assert not await publish(fra, bundle("bob", "tab"), number=2)
    assert fra.end() == end  # the same keys once more
    gone = pb.DeviceKeys(uid="bob", device="tab")
    assert not await publish(fra, gone, "phone", number=3)
    assert await asked(fra, wanted=True) == (False, ["ann/phone", "bob/phone"])
    assert not await publish(fra, bundle("bob", "tab", b"n"), number=4)  # it is back
    assert await asked(fra, wanted=True) == (False, ["ann/phone", "bob/phone", "bob/tab"])


@pytest.mark.parametrize(
    "keys",
    [
        bundle("eve", "phone"),  # another user's
        bundle("ann", "tab"),  # another device's
        bundle("ann", "a b"),
        bundle("ann", ""),
        pb.DeviceKeys(uid="ann", device="phone"),  # its own away
        pb.DeviceKeys(uid="ann", device="phone", identity=b"k" * 32),
        pb.DeviceKeys(
            uid="ann", device="phone", identity=b"k" * 31, signing=b"k" * 33,
            prekey=b"k" * 32, signature=b"k" * 64,
        ),
        pb.DeviceKeys(
            uid="ann", device="phone", identity=b"k" * 32, signing=b"k" * 32,
            prekey=b"k" * 32, signature=b"k" * 60_000,
        ),
    ],
)  # fmt: skip
async def test_malformed_and_foreign_keys_are_refused(
    open_idc: OpenIdc, keys: pb.DeviceKeys
) -> None:
    fra = await open_idc(others=())
    end = fra.end()
    assert await publish(fra, keys, "phone", uid="ann") == Code.BAD_REQUEST
    assert await publish(fra, pb.DeviceKeys(uid="ann", device="x"), "phone") == Code.NOT_FOUND
    assert fra.end() == end


async def test_a_user_has_so_many_devices_with_keys(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    for number in range(KEY_DEVICES_MAX):
        assert not await publish(fra, bundle("ann", f"d{number}"))
    assert await publish(fra, bundle("ann", "more")) == Code.TOO_LARGE
    assert not await publish(fra, bundle("ann", "d3", b"n"), number=2)  # one of them: new keys
    assert not await publish(fra, pb.DeviceKeys(uid="ann", device="d0"), "d1", number=2)
    assert not await publish(fra, bundle("ann", "more"))


async def test_devices_that_are_gone_hide_none_that_is_there(
    open_idc: OpenIdc, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their rows stay, so that an older word brings none back: a browser's devices come and go."""
    monkeypatch.setattr(device_keys, "_ROWS", 4)
    fra = await open_idc(others=())
    assert not await switch_on(fra, "ann")
    for number in range(9):
        assert not await publish(fra, bundle("bob", f"d{number}"))
        gone = pb.DeviceKeys(uid="bob", device=f"d{number}")
        assert not await publish(fra, gone, "phone", number=2)
    assert not await publish(fra, bundle("bob", "phone"))
    assert await asked(fra) == (True, ["bob/phone"])
    for number in range(1, KEY_DEVICES_MAX):
        assert not await publish(fra, bundle("bob", f"x{number}"))
    assert await publish(fra, bundle("bob", "y")) == Code.TOO_LARGE


async def test_an_idc_that_does_not_have_again_what_it_had_names_no_device(
    open_idc: OpenIdc,
) -> None:
    """A device that is missing only there would not be written to."""
    fra = await open_idc(others=())
    assert not await publish(fra, bundle("ann", "phone"))
    fra.im.whole = False
    assert await asked(fra) == (False, [])  # nobody needs them
    request = pb.DeviceKeysOf(conversation=DIRECT, wanted=True)
    answer = await fra.ask(fra.session("ann"), pb.Request(device_keys=request))
    assert answer.error.code == Code.UNAVAILABLE
    fra.im.whole = True
    assert await asked(fra, wanted=True) == (False, ["ann/phone"])


async def test_idcs_agree_on_keys_and_on_the_switch(open_idc: OpenIdc) -> None:
    fra, iad = await pair(open_idc)
    assert not await publish(fra, bundle("bob", "phone", b"a"), number=1)
    assert not await publish(iad, bundle("bob", "phone", b"b"), number=2)
    assert not await switch_on(fra, "ann")
    assert not await switch_on(iad, "bob")  # both, at once
    await meet(fra, iad)
    for idc in (fra, iad):
        assert await asked(idc) == (True, ["bob/phone"])


async def test_plain_content_is_refused_from_the_switch_on(open_idc: OpenIdc) -> None:
    fra, iad = await pair(open_idc)
    ann = fra.session("ann")
    plain = await fra.send(ann, DIRECT, 1, b"plain")
    assert not await switch_on(fra, "bob")
    end = fra.end()
    assert not await switch_on(fra, "ann")
    assert fra.end() == end  # so already
    assert (await fra.send(ann, DIRECT, 2, b"plain")).error.code == Code.ENCRYPTED_ONLY
    sealed = await fra.send(ann, DIRECT, 2, b"sealed", encrypted=True)
    assert not sealed.HasField("error")
    edit = pb.Change(message=sealed.send_ack.placed, edit=b"plain")
    edit.composed.CopyFrom(stamp_pb(KEYS.stamp(fra.im.hlc.last)))
    assert (await fra.ask(ann, pb.Request(change=edit))).error.code == Code.ENCRYPTED_ONLY
    edit.encrypted = True
    assert not (await fra.ask(ann, pb.Request(change=edit))).HasField("error")
    # Elsewhere: encrypted content may come before the word of the switch, and what an IDC has taken
    # before the switch is taken there after it.
    early = await iad.send(iad.session("bob"), DIRECT, 1, b"sealed", encrypted=True)
    assert not early.HasField("error")
    await fra.mirror_to(iad)
    placed = plain.send_ack.placed
    again = await iad.send(iad.session("ann"), DIRECT, 1, b"plain", placed=placed)
    assert not again.HasField("error")
    await meet(fra, iad)
    entries = (await iad.pull(iad.session("ann"), DIRECT)).pull_ok.entries
    told = {(e.message.content, e.message.encrypted) for e in entries if e.HasField("message")}
    assert told == {(b"plain", False), (b"sealed", True)}
    assert [(e.change.edit, e.change.encrypted) for e in entries if e.HasField("change")] == [
        (b"plain", True)
    ]
    listed = await iad.ask(iad.session("bob"), pb.Request(conversations=pb.Conversations()))
    [summary] = listed.conversations_ok.conversations
    assert summary.encrypted and summary.last.encrypted


async def test_the_switch_is_for_good_and_for_two(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    assert await switch_on(fra, "ann", on=False) == Code.BAD_REQUEST
    assert await switch_on(fra, "ann", "d:ann:ann") == Code.BAD_REQUEST
    assert await switch_on(fra, "eve") == Code.FORBIDDEN
    await fra.create(fra.session("ann"), GROUP, "bob")
    assert await switch_on(fra, "ann", GROUP) == Code.BAD_REQUEST
    request = pb.DeviceKeysOf(conversation=DIRECT)
    answer = await fra.ask(fra.session("eve"), pb.Request(device_keys=request))
    assert answer.error.code == Code.FORBIDDEN


async def test_a_group_is_encrypted_when_it_is_created(open_idc: OpenIdc) -> None:
    fra, iad = await pair(open_idc)
    ann = fra.session("ann")
    others = [f"u{number:02}" for number in range(ENCRYPTED_MEMBERS_MAX)]
    create = pb.GroupCreate(conversation=GROUP, members=others, encrypted=True)
    answer = await fra.ask(ann, pb.Request(group_create=create))
    assert answer.error.code == Code.BAD_REQUEST  # one too many
    del create.members[0]
    assert not (await fra.ask(ann, pb.Request(group_create=create))).HasField("error")
    assert (await fra.change(ann, GROUP, join=["more"])).error.code == Code.BAD_REQUEST
    for uid in create.members:
        assert not await publish(fra, bundle(uid, "phone"))
    await meet(fra, iad)
    for idc in (fra, iad):
        encrypted, devices = await asked(idc, GROUP)  # in pages
        assert encrypted and len(devices) == ENCRYPTED_MEMBERS_MAX - 1
        info = pb.Request(group_info=pb.GroupInfo(conversation=GROUP))
        assert (await idc.ask(idc.session("ann"), info)).group_info_ok.encrypted
        refused = await idc.send(idc.session("ann"), GROUP, 1, b"plain")
        assert refused.error.code == Code.ENCRYPTED_ONLY


async def test_nothing_of_it_is_written_before_every_idc_folds_it(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    fra.im.level_written = lambda: FIRST
    ann, end = fra.session("ann"), fra.end()
    create = pb.GroupCreate(conversation=GROUP, members=["bob"], encrypted=True)
    codes = [
        await publish(fra, bundle("ann", "phone")),
        await switch_on(fra, "ann"),
        (await fra.ask(ann, pb.Request(group_create=create))).error.code,
        (await fra.send(ann, DIRECT, 1, encrypted=True)).error.code,
    ]
    assert codes == [Code.UNAVAILABLE] * 4 and fra.end() == end
    plain = await fra.send(ann, DIRECT, 1, b"plain")
    edit = pb.Change(message=plain.send_ack.placed, edit=b"sealed", encrypted=True)
    assert (await fra.ask(ann, pb.Request(change=edit))).error.code == Code.UNAVAILABLE
    fra.im.level_written = lambda: LEVEL
    assert not await publish(fra, bundle("ann", "phone"))
    await fra.send(ann, DIRECT, 2, encrypted=True)
    await fra.create(ann, "g:2")
    own = fra.logs.own()
    assert own is not None
    ops = [oplog.Op.FromString(r.payload) for r in await own.read(0, 1, 1 << 20)]
    levels = {op.WhichOneof("body"): op.level for op in ops if op.level}
    assert levels == {"device_keys": ENCRYPTION, "message": ENCRYPTION}


async def test_search_finds_nothing_in_what_is_encrypted(open_idc: OpenIdc) -> None:
    fra = await open_idc(others=())
    ann = fra.session("ann")
    await fra.send(ann, DIRECT, 1, b"a word")
    await fra.send(ann, DIRECT, 2, b"a word", encrypted=True)
    await fra.folded()
    answer = await fra.ask(ann, pb.Request(search=pb.Search(words="word")))
    assert [row.key.cid for row in answer.search_ok.found] == [1]
