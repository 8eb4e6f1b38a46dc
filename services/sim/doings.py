"""What clients do besides sending by schedule, while faults go on.

Edits, recalls, reactions, bursts, groups that are made, joined and left, applications that die and
start again, new devices.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable
from dataclasses import dataclass, field

from imcore.errors import ImError
from services.loadgen.load import Load, Member
from services.loadgen.logins import Look, covering
from services.loadgen.recorder import Recorder
from services.sim.busy import Busy

GROUPS_MAX = 12
EMPTY_S = 10.0  # so long a device that is given up is waited for, until its outbox is empty
BURST_S = 0.000_2  # at most, between two messages of a burst: a commit takes as long as a few
CODES = ("+1", "heart", "wow")


@dataclass(slots=True)
class _Group:
    """``members``: those who are surely in it; the first one made it, and stays."""

    conversation: str
    members: list[str]
    sent: int = 0
    busy: set[str] = field(default_factory=set)  # users who are about to join or to leave
    left: set[str] = field(default_factory=set)


class Doings(Busy):
    per_s = 6.0

    def __init__(self, load: Load, recorder: Recorder, seed: int) -> None:
        super().__init__(load, recorder, seed, "doings")
        self._groups: list[_Group] = []
        self._changed: dict[tuple[str, str], None] = {}  # conversation and key
        self._unlike: list[tuple[str, str]] = []  # of them, those that devices showed differently
        self._devices = 0

    # ---------------------------------------------------------------------------- changes

    def _message(self, own: bool) -> tuple[Member, str, str] | None:
        """A device and a message that it was shown lately: of many the newest are the likeliest,
        so that changes of one message meet."""
        member = self._anybody()
        if member is None:
            return None
        found = [
            (conversation, key)
            for conversation, key, uid in member.ear.recent
            if uid == member.client.uid or not own
        ]
        if not found:
            return None
        conversation, key = found[-min(len(found), 1 + int(self._rng.expovariate(0.5)))]
        self._changed[conversation, key] = None
        return member, conversation, key

    async def _asked(self, ask: int, request: Awaitable[None]) -> None:
        with contextlib.suppress(ImError):  # it was made or not, or is still to be made
            await request
            self._recorder.change_done(ask)

    async def edit(self) -> None:
        if (found := self._message(own=True)) is not None:
            member, conversation, key = found
            ask, content = self._recorder.edit(member.ear, conversation, key, "edited")
            session = self._session(member)
            await self._asked(ask, session.edit(conversation, key, content))

    async def recall(self) -> None:
        if (found := self._message(own=True)) is not None:
            member, conversation, key = found
            ask = self._recorder.recall(member.ear, conversation, key)
            await self._asked(ask, self._session(member).recall(conversation, key))

    async def react(self) -> None:
        if (found := self._message(own=False)) is not None:
            member, conversation, key = found
            code, on = self._rng.choice(CODES), self._rng.random() < 0.7
            ask = self._recorder.react(member.ear, conversation, key, code, on)
            await self._asked(ask, self._session(member).react(conversation, key, code, on))

    # ----------------------------------------------------------------------------- groups

    async def create(self) -> None:
        member = self._anybody()
        if member is None or len(self._groups) >= GROUPS_MAX:
            return
        uid = member.client.uid
        others = sorted({each.client.uid for each in self._load.devices} - {uid})
        uids = [uid, *self._rng.sample(others, self._rng.randint(1, 4))]
        with contextlib.suppress(ImError):
            conversation = await self._session(member).create_group(uids, "made in mid-flight")
            self._recorder.members(conversation, uids)
            self._groups.append(_Group(conversation, uids))

    async def invite(self) -> None:
        if not self._groups:
            return
        group = self._rng.choice(self._groups)
        known = {*group.members, *group.busy}
        others = sorted({each.client.uid for each in self._load.devices} - known)
        member = self._device_of(self._rng.choice(group.members))
        if not others or member is None:
            return
        uid = self._rng.choice(others)
        group.busy.add(uid)
        session = self._session(member)
        with contextlib.suppress(ImError):
            if uid in group.left and uid in await session.members(group.conversation):
                group.busy.discard(uid)
                return  # that IDC has not heard that he left: he would stay out of it
            await session.join(group.conversation, uid)
            self._recorder.members(group.conversation, [uid])
            group.members.append(uid)
            group.busy.discard(uid)  # else nobody knows whether it is in it: it is left alone

    async def leave(self) -> None:
        """Who has left can fetch nothing any more, nor send again what no other IDC holds: so only
        who has everything that was sent to the group leaves, with an empty outbox."""
        leaving = [(group, uid) for group in self._groups for uid in group.members[1:]]
        if not leaving:
            return
        group, uid = self._rng.choice(leaving)
        devices = self._load.devices_of(uid)
        for device in devices:
            shown = device.ear.seen.get(group.conversation, 0)
            session = self._session(device)
            if not session.running or session.outbox or shown < group.sent:
                return
        group.members.remove(uid)
        group.left.add(uid)
        group.busy.add(uid)
        self._recorder.members(group.conversation, [uid], joined=False)
        with contextlib.suppress(ImError):
            await self._session(self._rng.choice(devices)).leave(group.conversation)
            group.busy.discard(uid)

    async def talk(self) -> None:
        if self._groups:
            group = self._rng.choice(self._groups)
            member = self._device_of(self._rng.choice(group.members))
            if member is not None:
                group.sent += 1
                self._load.say(member, group.conversation, "to those who are in it now")

    async def burst(self) -> None:
        """Many messages of one conversation at a time, so that some pass where others do not."""
        member = self._anybody()
        own = {group.conversation for group in self._groups}
        recent = [each[0] for each in member.ear.recent if each[0] not in own] if member else []
        if member is not None and recent:
            conversation = recent[-1]
            for number in range(self._rng.randint(10, 40)):
                self._load.say(member, conversation, f"burst {number}")
                await asyncio.sleep(self._rng.uniform(0.0, BURST_S))

    # ---------------------------------------------------------------------------- devices

    async def restart(self) -> None:
        """The application dies, between any two of its steps, and starts again from its file."""
        durable = [
            each for each in self._load.devices
            if self._session(each).running and self._session(each).durable
        ]  # fmt: skip
        if durable:
            member = self._rng.choice(durable)
            self._session(member).crash()
            await asyncio.sleep(self._rng.choice((0.05, 0.5, 3.0)))
            await self._load.start_again(member, member.client)

    async def new_device(self) -> None:
        """Of a user, in place of an old one, which is given up once nothing of it can be lost."""
        member = self._anybody()
        if member is None:
            return
        session = self._session(member)
        until = asyncio.get_running_loop().time() + EMPTY_S
        while session.running and session.outbox:
            if asyncio.get_running_loop().time() >= until:
                return
            await asyncio.sleep(0.1)
        if session.running:
            session.crash()
            self._devices += 1
            client = member.client._replace(device=f"new-{self._devices}")
            await self._load.start_again(member, client)

    # -------------------------------------------------------------------------- the end

    def complete(self) -> bool:
        """Whether members have what was acked in their groups, and all show what changes made of
        messages alike."""
        acked = self._recorder.acked_in
        if not all(
            device.ear.seen.get(group.conversation, 0) >= acked.get(group.conversation, 0)
            for group in self._groups
            for uid in group.members
            for device in self._load.devices_of(uid)
        ):
            return False
        # Asked every 100 ms: to look at all of them each time took a fifth of a seed.
        if any(not self._alike(*changed) for changed in self._unlike):
            return False
        self._unlike = [changed for changed in self._changed if not self._alike(*changed)]
        return not self._unlike

    def _alike(self, conversation: str, key: str) -> bool:
        group = next((g for g in self._groups if g.conversation == conversation), None)
        judged = {*group.members} - group.busy if group is not None else None
        first = None
        for member in self._load.devices:
            if judged is not None and member.client.uid not in judged:
                continue
            made = self._session(member).changes(conversation, key)
            first = first or made
            if made is not None and made != first:
                return False
        return True

    def looks(self) -> list[Look]:
        """Who has to log in so that all with acked messages is looked at, the load's too. A user
        logs in once: two logins of one name would end each other's connection."""
        acked = self._recorder.acked_in
        wanted: dict[str, tuple[str, ...]] = {}
        groups = {
            group.conversation: group.members
            for group in self._groups
            if acked.get(group.conversation)
        }
        for uid, conversations, _ in [*self._load.looks(), *covering(groups)]:
            wanted[uid] = wanted.get(uid, ()) + conversations
        return [Look(*each) for each in wanted.items()]


Doings.kinds = {
    "edit": (1.2, Doings.edit),
    "recall": (0.3, Doings.recall),
    "react": (1.5, Doings.react),
    "create group": (0.3, Doings.create),
    "invite": (0.4, Doings.invite),
    "leave": (0.4, Doings.leave),
    "talk": (1.5, Doings.talk),
    "burst": (0.2, Doings.burst),
    "restart": (0.15, Doings.restart),
    "new device": (0.07, Doings.new_device),
}
