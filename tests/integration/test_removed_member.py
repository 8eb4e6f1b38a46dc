"""Whoever is removed is told so, and nothing that is said afterwards, though one batch of another
IDC's log folds both."""

from __future__ import annotations

import pytest

from imcore.region.model import Messages
from services.im.testing import PATIENT_MS, Idc, OpenIdc

TEAM = "g:team"


def pushed(idc: Idc, uid: str) -> list[bytes]:
    """In order; an entry that is no message is empty."""
    return [
        entry.message.content
        for name, uids, entry in idc.pushes.entries
        if name == TEAM and uid in uids
    ]


@pytest.mark.parametrize("huge", [False, True])
async def test_one_batch_with_the_removal_and_what_follows(open_idc: OpenIdc, huge: bool) -> None:
    policy = Messages(replicated_timeout_ms=PATIENT_MS, push_group_members_max=1 if huge else 500)
    fra = await open_idc("fra.1", others=("iad",), policy=policy)
    iad = await open_idc("iad.1", others=("fra",), policy=policy)
    ann = fra.session("ann")
    await fra.create(ann, TEAM, "ann", "bob", "eve")
    await fra.mirror_to(iad)
    iad.pushes.entries.clear()
    await fra.send(ann, TEAM, 1, b"before")
    await fra.change(ann, TEAM, leave=["bob"])
    await fra.send(ann, TEAM, 2, b"after")
    await fra.mirror_to(iad)
    assert pushed(iad, "bob") == [b"before", b""]
    assert pushed(iad, "eve") == [b"before", b"", b"after"]


async def test_who_is_back_by_the_end_of_the_batch_is_a_member(open_idc: OpenIdc) -> None:
    fra = await open_idc("fra.1", others=("iad",))
    iad = await open_idc("iad.1", others=("fra",))
    ann = fra.session("ann")
    await fra.create(ann, TEAM, "ann", "bob")
    await fra.mirror_to(iad)
    iad.pushes.entries.clear()
    await fra.change(ann, TEAM, leave=["bob"])
    await fra.change(ann, TEAM, join=["bob"])
    await fra.send(ann, TEAM, 1, b"after")
    await fra.mirror_to(iad)
    assert pushed(iad, "bob") == [b"", b"", b"after"]
