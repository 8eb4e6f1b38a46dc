"""Fresh logins after (or during) a run: a client that remembers nothing looks at whole
conversations in one IDC. So few users that every conversation is looked at in every IDC."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from imcore.errors import ImError, Unavailable
from services.loadgen.ports import Connect, Standing, Stood
from services.loadgen.recorder import Deaf, Recorder
from services.loadgen.together import together

CONCURRENT = 8
TRIES = 3
TIMEOUT_S = 15.0
BACK_S = 8.0


class Look(NamedTuple):
    """One login: as whom, at which conversations, and at what stands of which words (kind and
    about, as in ``imcore.history.Word``)."""

    uid: str
    conversations: tuple[str, ...]
    words: tuple[tuple[str, str], ...] = ()


def covering(members: Mapping[str, Collection[str]]) -> list[Look]:
    """Users who together are members of all these conversations: greedily, small conversations
    first, because they leave no choice; of two, who is in fewer, because a login fetches all."""
    busy = Counter(uid for uids in members.values() for uid in uids)
    chosen: dict[str, list[str]] = {}
    for conversation in sorted(members, key=lambda name: (len(members[name]), name)):
        uids = sorted(members[conversation], key=lambda uid: (busy[uid], uid))
        uid = next((uid for uid in uids if uid in chosen), uids[0])
        chosen.setdefault(uid, []).append(conversation)
    return [Look(uid, tuple(conversations)) for uid, conversations in chosen.items()]


class Failure(NamedTuple):
    uid: str
    idc: str
    reason: str


async def look(
    connect: Connect,
    recorder: Recorder,
    looks: Sequence[Look],
    idcs: Mapping[str, str],
    purpose: str,
    within_s: float = 60.0,
) -> list[Failure]:
    """Every look at each of the IDCs; ``idcs``: an address that is at home there. What failed even
    when tried again, or was not done ``within_s``, is returned and lacks its lines in it."""
    gate = asyncio.Semaphore(CONCURRENT)
    deadline = _now() + within_s
    failures: list[Failure] = []

    async def one(wanted: Look, idc: str, address: str) -> None:
        async with gate:
            reason = "not tried"
            for _ in range(TRIES):
                n = recorder.looking(idc)
                try:
                    async with asyncio.timeout_at(min(deadline, _now() + TIMEOUT_S)):
                        found = await _found(connect, wanted, idc, address, purpose)
                except (ImError, TimeoutError) as error:
                    reason = str(error) or "no answer in time"
                    if _now() >= deadline:
                        break
                else:
                    recorder.login(n, wanted.uid, idc, purpose, *found)
                    return
            failures.append(Failure(wanted.uid, idc, reason))

    await together(one(wanted, idc, address) for idc, address in idcs.items() for wanted in looks)
    return failures


def _now() -> float:
    return asyncio.get_running_loop().time()


class _Found(NamedTuple):
    views: dict[str, list[Stood]]
    unread: Mapping[str, int]
    standing: list[Standing]


async def _found(connect: Connect, wanted: Look, idc: str, address: str, purpose: str) -> _Found:
    session = connect(wanted.uid, f"{purpose}-{idc}", address, Deaf(), False)
    try:
        await session.open()
        # One that was slow to answer has lost the race to another IDC, which sends its client back.
        until = _now() + BACK_S
        while session.idc != idc:
            if _now() >= until:
                raise Unavailable(f"the login came to {session.idc or 'no IDC'}, not to {idc}")
            await asyncio.sleep(0.1)
        unread = await session.unread()
        views = {name: await session.history(name) for name in wanted.conversations}
        standing = await session.standing(wanted.words) if wanted.words else []
        return _Found(views, unread, standing)
    finally:
        await session.close()
