"""What the load needs of a chat client. ``services.loadgen.sdk`` adapts the SDK's public API to it;
the recorder and the runner know nothing else of a client."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

from imcore.words import Place


class Listener(Protocol):
    """What an application is told; called from the event loop."""

    def shown(
        self, conversation: str, key: str, uid: str, content: bytes, at: int, late: bool
    ) -> None: ...

    def moved(self, conversation: str, key: str, origin: int, target: int) -> None: ...

    def cursor(self, conversation: str, key: str, uid: str) -> None: ...

    def changed(
        self,
        conversation: str,
        key: str,
        content: bytes,
        recalled: bool,
        reactions: Sequence[tuple[str, str]],
    ) -> None:
        """What a message says from now on; ``reactions``: uid and code of those that stand."""
        ...

    def connection(self, idc: str, gateway: str) -> None:
        """Empty names: the connection is lost."""
        ...


class Acked(NamedTuple):
    """``how``: stored, replicated or degraded. ``place``: where it stands, as its IDC knew it."""

    how: str
    place: Place


class Stood(NamedTuple):
    """A message of a conversation, and what changes have made of it."""

    key: str
    content: bytes
    recalled: bool = False
    reactions: Sequence[tuple[str, str]] = ()


class Standing(NamedTuple):
    """What stands of a word on friends, settings or groups: ``imcore.history.Word``."""

    kind: str
    about: str
    value: str


class Session(Protocol):
    """One application on one device."""

    @property
    def idc(self) -> str:
        """Where it is connected; empty while it is not."""
        ...

    async def open(self) -> None:
        """Connect and be in sync. Raises ImError."""
        ...

    async def close(self) -> None: ...

    def direct(self, uid: str) -> str: ...

    async def create_group(self, uids: Sequence[str], name: str) -> str: ...

    async def members(self, conversation: str) -> Sequence[str]:
        """Raises ImError when this IDC does not know the group (yet)."""
        ...

    async def send(self, conversation: str, content: bytes) -> Acked:
        """Until it is durably stored. Raises ImError."""
        ...

    async def read_up_to(self, conversation: str, key: str) -> None:
        """This user has read up to this message, which was shown. Raises ImError."""
        ...

    async def unread(self) -> Mapping[str, int]:
        """How many messages of each of this user's conversations are unread; those are left out of
        which there may be more. Raises ImError."""
        ...

    async def history(self, conversation: str) -> list[Stood]:
        """The whole conversation, in order. Raises ImError."""
        ...

    async def standing(self, words: Sequence[tuple[str, str]]) -> list[Standing]:
        """What stands of these (kind, about). Raises ImError."""
        ...


class Connect(Protocol):
    """Makes a session; ``address`` is where in the world it says it is."""

    def __call__(
        self, uid: str, device: str, address: str, listener: Listener, remember: bool
    ) -> Session:
        """``remember`` False: a fresh login that keeps nothing."""
        ...
