"""The history of a run, as the application saw it: JSON lines (docs/history.md).

A recorder writes what the application's own callbacks received and what fresh logins found
afterwards; ``imcore.checker`` judges it. Times are microseconds on the recorder's monotonic
clock. The first line is the header, an object; every other line is an array whose first element
names the kind and whose second is the time. Devices and conversations are declared once and
then called by number, which keeps a run of half a million messages small.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple, get_origin, get_type_hints

from imcore.errors import BadInput

VERSION = 1
FLUSH_BYTES = 256 * 1024


class Header(NamedTuple):
    """``started``: wall clock, RFC 3339, for people only."""

    version: int = VERSION
    started: str = ""
    region: str = ""
    run: str = ""


class Device(NamedTuple):
    """One application on one device starts; its view is empty."""

    t: int
    n: int
    uid: str
    device: str


class Closed(NamedTuple):
    """That application stopped: its view is not expected to be complete."""

    t: int
    n: int


class Conversation(NamedTuple):
    t: int
    c: int
    id: str


class Member(NamedTuple):
    """``joined`` is written when the join had returned, a leave when it is about to be asked for:
    what is composed in between is not demanded of this user."""

    t: int
    c: int
    uid: str
    joined: bool


class Compose(NamedTuple):
    """The application calls send. ``seen``: how many ``shown`` lines of this device and
    conversation stood before it; those messages are what this one may answer."""

    t: int
    n: int
    c: int
    tag: str
    seen: int


class Ack(NamedTuple):
    """``how``: stored, replicated or degraded."""

    t: int
    n: int
    tag: str
    how: str


class Placed(NamedTuple):
    """The ack said where the message stands: (``hlc``, ``origin``, ``seq``) of its acceptance."""

    t: int
    c: int
    tag: str
    origin: str
    seq: int
    hlc: int


class SendFailed(NamedTuple):
    """The application was told that the send failed; the message may still turn up."""

    t: int
    n: int
    tag: str
    reason: str


class Shown(NamedTuple):
    """Inserted at index ``at`` of this device's view of the conversation."""

    t: int
    n: int
    c: int
    tag: str
    at: int
    late: bool


class Moved(NamedTuple):
    """Taken out at ``origin`` and put in at ``target`` (counted after it was taken out)."""

    t: int
    n: int
    c: int
    tag: str
    origin: int
    target: int


class Cursor(NamedTuple):
    """``uid`` has read up to this message."""

    t: int
    n: int
    c: int
    tag: str
    uid: str


class Connection(NamedTuple):
    """Empty names: the connection is lost."""

    t: int
    n: int
    idc: str
    gateway: str


class Phase(NamedTuple):
    """From here on the run is in this phase."""

    t: int
    name: str


class Fault(NamedTuple):
    """Something was done to an IDC: ``kill``, ``killed``, ``restart``, ``switchover``, ..."""

    t: int
    idc: str
    what: str


class Quiet(NamedTuple):
    """The load has ended and things have settled; fresh logins at these IDCs follow."""

    t: int
    idcs: list[str]


class Login(NamedTuple):
    """A fresh login, nothing remembered. ``purpose``: final, or rpo (right after a failover)."""

    t: int
    n: int
    uid: str
    idc: str
    purpose: str


class View(NamedTuple):
    """The whole ordered list that a fresh login found."""

    t: int
    n: int
    c: int
    tags: list[str]


class Looking(NamedTuple):
    """Login n begins to look in this IDC; the lines of what it found come later, or never."""

    t: int
    n: int
    idc: str


class Policy(NamedTuple):
    """``at`` said this of its policy. One ``at`` is asked by one asker, who waits for each answer
    before the next question. ``content``: equal where the contents are; empty: it was not told."""

    t: int
    at: str
    epoch: int
    content: str


class Replica(NamedTuple):
    """In the end an IDC holds a state of this hash."""

    t: int
    idc: str
    hash: str


class Change(NamedTuple):
    """The application asks for a change of a message. ``what``: edit (``value``: the tag of what it
    is to say), recall, react or unreact (``value``: the code). ``ask``: unique in the run."""

    t: int
    n: int
    c: int
    tag: str
    ask: int
    what: str
    value: str


class ChangeDone(NamedTuple):
    """The service has answered that this change was made."""

    t: int
    ask: int


class Says(NamedTuple):
    """Device n was told that a message says this from now on. ``says``: the tag of its content,
    empty once it is recalled; ``reactions``: code and uid, with a space between, sorted."""

    t: int
    n: int
    c: int
    tag: str
    says: str
    reactions: list[str]


class Read(NamedTuple):
    """The application says that its user has read up to this message. ``ask``: unique in the
    run."""

    t: int
    n: int
    c: int
    tag: str
    ask: int


class ReadDone(NamedTuple):
    """The service has answered that it holds this read cursor."""

    t: int
    ask: int


class Unread(NamedTuple):
    """Login n was told how many messages of a conversation are unread."""

    t: int
    n: int
    c: int
    unread: int


class ViewSays(NamedTuple):
    """In the view of login n a message was changed, and says this."""

    t: int
    n: int
    c: int
    tag: str
    says: str
    reactions: list[str]


class Word(NamedTuple):
    """The application says something that stands until something else is said. ``kind``: friend,
    pin or mute of its user, ``about`` a uid or a conversation; or name, announcement, owner, role
    or member of a group, ``about`` its id, for the last two with a space and the uid. ``ask``:
    unique in the run."""

    t: int
    n: int
    ask: int
    kind: str
    about: str
    value: str


class WordDone(NamedTuple):
    """The service has answered that this word counts."""

    t: int
    ask: int


class Stands(NamedTuple):
    """Login n found that this stands, of its user or of a group."""

    t: int
    n: int
    kind: str
    about: str
    value: str


Event = (
    Device | Closed | Conversation | Member | Compose | Ack | Placed | SendFailed | Shown | Moved
    | Cursor | Connection | Phase | Fault | Quiet | Login | View | Looking | Policy | Replica
    | Change | ChangeDone | Says | ViewSays | Read | ReadDone | Unread | Word | WordDone | Stands
)  # fmt: skip

_KINDS: dict[str, type[Event]] = {
    "device": Device, "closed": Closed, "conversation": Conversation, "member": Member,
    "compose": Compose, "ack": Ack, "placed": Placed, "send_failed": SendFailed,
    "shown": Shown, "moved": Moved,
    "cursor": Cursor, "connection": Connection, "phase": Phase, "fault": Fault, "quiet": Quiet,
    "login": Login, "view": View, "looking": Looking, "policy": Policy, "replica": Replica,
    "change": Change, "change_done": ChangeDone, "says": Says, "view_says": ViewSays,
    "read": Read, "read_done": ReadDone, "unread": Unread,
    "word": Word, "word_done": WordDone, "stands": Stands,
}  # fmt: skip
_TYPES: dict[str, tuple[type, ...]] = {
    name: tuple(get_origin(hint) or hint for hint in get_type_hints(kind).values())
    for name, kind in _KINDS.items()
}
_encode = json.JSONEncoder(separators=(",", ":")).encode
_quoted = json.encoder.encode_basestring_ascii
_NAMES: dict[type[Event], str] = {kind: name for name, kind in _KINDS.items()}


# --------------------------------------------------------------------------- tags in content


def seal(number: int, body: str) -> tuple[str, bytes]:
    """The tag and the content of an application's message: unique number, hash, body."""
    tag = f"{number}-{_digest(number, body)}"
    return tag, f"{tag} {body}".encode()


@functools.lru_cache(maxsize=8192)  # one message is received by many devices
def tag_of(content: bytes) -> str:
    """The tag of received content, with the hash taken again over what was received: altered
    content gives a tag that nobody composed. Never raises."""
    try:
        head, _, body = content.decode().partition(" ")
        number = int(head.partition("-")[0])
    except ValueError:
        return f"?-{hashlib.blake2b(content, digest_size=6).hexdigest()}"
    return f"{number}-{_digest(number, body)}"


def _digest(number: int, body: str) -> str:
    return hashlib.blake2b(f"{number} {body}".encode(), digest_size=6).hexdigest()


# --------------------------------------------------------------------------- writing, reading


class HistoryWriter:
    """Appends whole lines; what was flushed survives a kill of the writer.

    ``write`` buffers up to FLUSH_BYTES; a caller that wants a bound in time flushes by its own
    clock. Raises BadInput when the file cannot be made.
    """

    def __init__(self, path: Path, header: Header) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise BadInput(f"cannot write the history {path}: {error.strerror}") from error
        self._lines: list[str] = []
        self._failure: OSError | None = None
        self._size = 0
        self.lines = 0
        fields = header._asdict()
        self._add(json.dumps({"history": fields.pop("version"), **fields}))
        self.flush()

    def write(self, event: Event) -> None:
        if type(event) is Shown:  # most lines: five times as fast as the general way
            self._add(
                f'["shown",{event.t},{event.n},{event.c},{_quoted(event.tag)},{event.at},'
                f"{'true' if event.late else 'false'}]"
            )
        else:
            self._add(_encode((_NAMES[type(event)], *event)))

    def _add(self, line: str) -> None:
        self._lines.append(line)
        self.lines += 1
        self._size += len(line) + 1
        if self._size >= FLUSH_BYTES:
            self.flush()

    def flush(self) -> None:
        if not self._lines:
            return
        if self._failure is not None:  # what came before it is not whole: nothing goes on behind it
            raise self._failure
        data = memoryview(("\n".join(self._lines) + "\n").encode())
        self._lines, self._size = [], 0
        try:
            while data:
                data = data[os.write(self._fd, data) :]
        except OSError as error:
            self._failure = error
            raise

    def close(self) -> None:
        """Flush and close; a second close does nothing."""
        if self._fd < 0:
            return
        self.flush()
        os.close(self._fd)
        self._fd = -1


def read_history(
    path: Path, on_torn: Callable[[], None] = lambda: None
) -> tuple[Header, Iterator[Event]]:
    """The header, and the events one by one. A torn *last* line is left out (``on_torn`` is
    called); anything else that cannot be read raises BadInput, here or while iterating."""
    try:
        file = path.open("rb")
    except OSError as error:
        raise BadInput(f"cannot read the history {path}: {error.strerror}") from error
    with file:
        first = file.readline()
    return _parse_header(path, first), _events(path, on_torn)


def _parse_header(path: Path, line: bytes) -> Header:
    try:
        fields = json.loads(line)
        version = fields["history"]
        header = Header(version, *(fields[name] for name in Header._fields[1:]))
        if tuple(map(type, header)) != (int, str, str, str):
            raise TypeError("a field of another type")
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadInput(f"{path}:1: expected the header of a history") from error
    if version != VERSION:
        raise BadInput(f"{path}:1: history version {version}, this program reads {VERSION}")
    return header


def _events(path: Path, on_torn: Callable[[], None]) -> Iterator[Event]:
    with path.open("rb") as file:
        file.readline()
        for number, line in enumerate(file, start=2):
            if not line.endswith(b"\n"):
                on_torn()  # only the last line can lack its end
                return
            try:
                event = _event(*json.loads(line))
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise BadInput(
                    f"{path}:{number}: expected a line of a history, got {line[:60]!r}"
                ) from error
            yield event


def _event(kind: str, *fields: Any) -> Event:
    """Raises KeyError, TypeError."""
    if tuple(map(type, fields)) != _TYPES[kind]:
        raise TypeError("a field of another type, or too many, or too few")
    for field in fields:
        if type(field) is list and not all(type(item) is str for item in field):
            raise TypeError("a list of something else than texts")
    return _KINDS[kind](*fields)
