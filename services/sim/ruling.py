"""Groups that are ruled, while faults go on: names, announcements, roles, who is put out and in,
who owns them.

They are groups of their own, in which nothing is sent. Who made one stays; of every second one it
hands it over to another member, and gets it back. One member is given the role of admin and loses
it, another one is put out and in again, so that either is told of what was said of it alone. What
is so already where it is asked for is left alone: an IDC that has not heard of the last word yet
takes such a word for one that is asked for again.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from typing import NamedTuple

from imcore.errors import ImError
from services.loadgen.load import Load, Member
from services.loadgen.recorder import Recorder
from services.sdk import Group
from services.sim.busy import Busy, lookers

GROUPS_MAX = 3
OTHERS_MAX = (
    2  # members that no word puts out or makes admin: a group of four and more is huge here
)
BY_ADMIN = 0.2  # how often it is neither maker nor heir who rules


@dataclass(slots=True)
class _Group:
    conversation: str
    maker: str
    heir: str  # owner at times; empty: the maker stays it
    admin: str  # at times
    guest: str  # a member at times


class _Ruler(NamedTuple):
    """A device, and what its IDC holds of the group."""

    member: Member
    group: Group


class Ruling(Busy):
    per_s = 0.9

    def __init__(self, load: Load, recorder: Recorder, seed: int) -> None:
        super().__init__(load, recorder, seed, "ruling")
        self._makers = lookers(load.population)
        self._groups: list[_Group] = []
        self._said = 0

    def words(self) -> dict[str, tuple[tuple[str, str], ...]]:
        """What to look at, by whom."""
        found: dict[str, tuple[tuple[str, str], ...]] = {}
        for group in self._groups:
            name = group.conversation
            found[group.maker] = (
                *found.get(group.maker, ()),
                ("name", name),
                ("owner", name),
                ("announcement", name),
                ("role", f"{name} {group.admin}"),
                ("member", f"{name} {group.guest}"),
            )
        return found

    def _text(self, what: str) -> str:
        """Said once in a run."""
        self._said += 1
        return f"{what} {self._said}"

    async def create(self) -> None:
        maker = self._rng.choice(self._makers)
        member = self._device_of(maker)
        if member is None or len(self._groups) >= GROUPS_MAX:
            return
        uids = sorted({each.client.uid for each in self._load.devices} - {maker})
        admin, guest, *others = self._rng.sample(uids, 2 + self._rng.randint(0, OTHERS_MAX))
        heir = others[0] if others else ""
        name, ear, session = self._text("group"), member.ear, self._session(member)
        connections = ear.connections
        with contextlib.suppress(ImError):
            made = await session.create_group([admin, guest, *others], name)
            if ear.connections != connections:
                return  # it may be made once more, and all of them come in again, at any time
            for kind, about, value in (
                ("name", made, name), ("owner", made, maker), ("member", f"{made} {guest}", "in"),
            ):  # fmt: skip
                self._recorder.word_done(self._recorder.word(ear, kind, about, value))
            self._groups.append(_Group(made, maker, heir, admin, guest))

    async def _ruler(self, group: _Group, admins: float = BY_ADMIN) -> _Ruler | None:
        if self._rng.random() < admins:
            uid = group.admin
        else:
            uid = self._rng.choice(list(filter(None, (group.maker, group.heir))))
        member = self._device_of(uid)
        if member is None:
            return None
        connections, ear = member.ear.connections, member.ear
        client = self._session(member).client
        with contextlib.suppress(ImError):
            seen = await self._session(member).there(client.group(group.conversation))
            if member.ear is ear and ear.connections == connections:
                return _Ruler(member, seen)
        return None

    def _group(self) -> _Group | None:
        return self._rng.choice(self._groups) if self._groups else None

    async def rename(self) -> None:
        if (group := self._group()) is None or (ruler := await self._ruler(group)) is None:
            return
        name, said = group.conversation, self._text("name")
        work = self._session(ruler.member).client.rename(name, said)
        await self._say(ruler.member, "name", name, said, work)

    async def announce(self) -> None:
        if (group := self._group()) is None or (ruler := await self._ruler(group)) is None:
            return
        name, said = group.conversation, self._text("announcement")
        work = self._session(ruler.member).client.announce(name, said)
        await self._say(ruler.member, "announcement", name, said, work)

    async def role(self) -> None:
        """Given and taken by the owner; an admin resigns."""
        if (group := self._group()) is None or (ruler := await self._ruler(group)) is None:
            return
        if ruler.member.client.uid not in (ruler.group.owner, group.admin):
            return
        name, uid = group.conversation, group.admin
        role = "member" if uid in ruler.group.admins else "admin"
        work = self._session(ruler.member).client.set_role(name, uid, role)
        await self._say(ruler.member, "role", f"{name} {uid}", role, work)

    async def hand_over(self) -> None:
        if (group := self._group()) is None or (ruler := await self._ruler(group, 0.0)) is None:
            return
        owner, name = ruler.group.owner, group.conversation
        if not group.heir or ruler.member.client.uid != owner:
            return
        to = group.heir if owner == group.maker else group.maker
        work = self._session(ruler.member).client.set_role(name, to, "owner")
        await self._say(ruler.member, "owner", name, to, work)

    async def guest(self) -> None:
        """Put out or in, by the owner or an admin."""
        if (group := self._group()) is None or (ruler := await self._ruler(group)) is None:
            return
        name, uid, client = group.conversation, group.guest, self._session(ruler.member).client
        inside = uid in ruler.group.members
        work = client.remove(name, [uid]) if inside else client.join(name, [uid])
        await self._say(ruler.member, "member", f"{name} {uid}", "out" if inside else "in", work)


Ruling.kinds = {
    "create ruled group": (0.4, Ruling.create),
    "rename": (1.0, Ruling.rename),
    "announce": (1.0, Ruling.announce),
    "role": (1.2, Ruling.role),
    "put out or in": (1.2, Ruling.guest),
    "hand over": (0.8, Ruling.hand_over),
}
