"""Files that clients send with their messages, while faults go on. Who is shown one gets the bytes
of its sender, and what an upload was answered with is there in the end, wherever it is asked for,
unless the disk of the IDC that took it was lost since."""

from __future__ import annotations

import contextlib
import itertools
import math
from pathlib import Path
from typing import NamedTuple

from imcore.errors import ImError
from imcore.media import MediaName, MediaRef
from imcore.words import is_group
from services.loadgen.load import Load, Member
from services.loadgen.recorder import Recorder
from services.sim.busy import Busy
from services.sim.referring import Referring
from services.sim.world import World

BYTES_MAX = 600_000  # three chunks of the SDK's
TYPE = "application/x-simulated"


class _File(NamedTuple):
    ref: MediaRef
    data: bytes
    damages: int  # of the disk of its IDC, by the time of the answer


class Filing(Busy):
    """``wrong``: what may be of no file."""

    per_s = 0.6

    def __init__(self, load: Load, recorder: Recorder, world: World, referring: Referring) -> None:
        super().__init__(load, recorder, world.seed, "filing")
        self.wrong: list[str] = []
        self._world = world
        self._referring = referring
        self._files: dict[MediaName, _File] = {}
        self._broken_off: dict[str, bytes] = {}  # uid: what this user's device was uploading
        self._folder = world.scratch / "downloads"
        self._folder.mkdir()
        self._numbers = itertools.count()

    async def upload(self) -> None:
        """Into a conversation of the load that its device was shown something of: who leaves one
        of the others counts what was sent to it. What broke off before, from the same or another
        device of its user, is gone on with."""
        member = self._anybody()
        recent = [each[0] for each in member.ear.recent] if member is not None else []
        own = [each for each in recent if not is_group(each) or each in self._load.groups]
        if member is None or not own:
            return
        uid, conversation = member.client.uid, own[-1]
        size = int(math.exp(self._rng.uniform(0, math.log(BYTES_MAX))))
        data = self._broken_off.pop(uid, None) or self._rng.randbytes(size)
        client = self._session(member).client
        try:
            ref = await self._session(member).there(client.upload(data, TYPE, f"{len(data)} bytes"))
        except ImError:
            self._broken_off[uid] = data
            return
        damages = self._world.machines[ref.named.idc].damages
        self._files[ref.named] = _File(ref, data, damages)
        self._referring.attach(uid, conversation, ref)
        self._load.say(member, conversation, "with a file")

    async def download(self) -> None:
        """One that somebody was shown lately."""
        member = self._anybody()
        if member is not None and self._referring.shown:
            await self._download(member, self._rng.choice(list(self._referring.shown)))

    async def _download(self, member: Member, ref: MediaRef) -> str:
        """Why it did not come, or empty."""
        path = self._folder / str(next(self._numbers))
        client = self._session(member).client
        try:
            await self._session(member).there(client.download(ref, path))
        except ImError as error:
            return str(error)
        self._compare(ref, path)
        return ""

    def _compare(self, ref: MediaRef, path: Path) -> None:
        file = self._files.get(ref.named)
        if file is None or path.read_bytes() != file.data:
            self.wrong.append(f"file: what {ref} names is not what was uploaded")
        with contextlib.suppress(FileNotFoundError):
            path.unlink()

    async def judge(self) -> None:
        """All IDCs serve and hear each other again: each file by somebody's device in each of
        them, but for those whose IDC's disk was lost."""
        for ref, _, damages in self._files.values():
            if self._world.machines[ref.named.idc].damages > damages:
                continue
            for idc in self._world.machines:
                members = self._load.connected_to(idc)
                if members and (why := await self._download(self._rng.choice(members), ref)):
                    self.wrong.append(f"file: {ref.named} does not come to {idc}: {why}")
                    break


Filing.kinds = {
    "upload": (1.0, Filing.upload),
    "download": (1.2, Filing.download),
}
