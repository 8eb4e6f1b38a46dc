"""Writes the history of a run from what the applications were told, and counts it for the live
view. It knows only the callbacks of ``services.loadgen.ports.Listener``."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

from imcore import history as h
from imcore.words import is_group
from services.loadgen.ports import Acked, Standing, Stood

RECENT = 32  # messages that a device remembers, to do something with them


class Ear:
    """The application of one device: notes what it was told."""

    def __init__(self, recorder: Recorder, n: int, uid: str) -> None:
        self.n = n
        self.uid = uid
        self.seen: dict[str, int] = {}  # shown so far, by conversation
        # Conversation, key and uid of what was shown last, oldest first.
        self.recent: deque[tuple[str, str, str]] = deque(maxlen=RECENT)
        self.connections = 0  # so often they have come and gone
        self._recorder = recorder

    def shown(
        self, conversation: str, key: str, uid: str, content: bytes, at: int, late: bool
    ) -> None:
        recorder = self._recorder
        tag = recorder.tags[key] = recorder.tag_of(key, content)
        now = recorder.now_us()
        recorder.write(h.Shown(now, self.n, recorder.conversation(conversation), tag, at, late))
        self.seen[conversation] = self.seen.get(conversation, 0) + 1
        self.recent.append((conversation, key, uid))
        recorder.counts.shown += 1
        if uid != self.uid:
            recorder.last_shown[conversation] = self.n
        if (composed := recorder.composed_at.get(tag)) and composed[1] != self.n:
            recorder.receive_us.append(now - composed[0])

    def moved(self, conversation: str, key: str, origin: int, target: int) -> None:
        recorder = self._recorder
        c = recorder.conversation(conversation)
        tag = recorder.tags.get(key, f"?-{key}")
        recorder.write(h.Moved(recorder.now_us(), self.n, c, tag, origin, target))

    def cursor(self, conversation: str, key: str, uid: str) -> None:
        recorder = self._recorder
        if (tag := recorder.tags.get(key)) is not None:
            c = recorder.conversation(conversation)
            recorder.write(h.Cursor(recorder.now_us(), self.n, c, tag, uid))

    def changed(
        self,
        conversation: str,
        key: str,
        content: bytes,
        recalled: bool,
        reactions: Sequence[tuple[str, str]],
    ) -> None:
        recorder = self._recorder
        c, tag = recorder.conversation(conversation), recorder.tags.get(key, f"?-{key}")
        said = _says(content, recalled, reactions)
        recorder.write(h.Says(recorder.now_us(), self.n, c, tag, *said))

    def connection(self, idc: str, gateway: str) -> None:
        recorder = self._recorder
        recorder.where[self.n] = idc
        self.connections += 1
        recorder.write(h.Connection(recorder.now_us(), self.n, idc, gateway))


def _says(
    content: bytes, recalled: bool, reactions: Sequence[tuple[str, str]]
) -> tuple[str, list[str]]:
    says = "" if recalled else h.tag_of(content)
    return says, sorted(f"{code} {uid}" for uid, code in reactions)


class Deaf:
    """The listener of what is asked and not told, such as a fresh login."""

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
    ) -> None: ...

    def connection(self, idc: str, gateway: str) -> None: ...


class Counters:
    """Since the start of the run."""

    def __init__(self) -> None:
        self.composed = 0
        self.acked = 0
        self.group_acked = 0  # of these, to groups
        self.failed = 0
        self.shown = 0


class Recorder:
    """``write`` is the history's writer; ``now`` a monotonic clock in seconds."""

    def __init__(
        self,
        write: Callable[[h.Event], None],
        now: Callable[[], float],
        flush: Callable[[], None] = lambda: None,
    ) -> None:
        self.write = write
        self.flush = flush
        self._now = now
        self.counts = Counters()
        self.tags: dict[str, str] = {}  # the SDK's key of a message: our tag
        self._wanted: dict[str, set[str]] = {}  # by key: what a change may make it say
        self._asks = 0
        self.where: dict[int, str] = {}  # the IDC that each device is connected to, or ""
        self.last_shown: dict[str, int] = {}  # who could answer, by conversation
        self.composed_at: dict[str, tuple[int, int]] = {}  # tag: (µs, device)
        self.waiting: dict[str, int] = {}  # sends not answered yet, oldest first: tag, µs
        self.acked_in: dict[str, int] = {}  # acked messages by conversation
        self.ack_us: list[int] = []  # of this second: the runner takes and clears them
        self.receive_us: list[int] = []
        self._conversations: dict[str, int] = {}
        self._devices = 0
        self._logins = 0
        self._messages = 0
        self._policies: dict[str, tuple[int, str]] = {}

    def now_us(self) -> int:
        return int(self._now() * 1_000_000)

    def device(self, uid: str, device: str) -> Ear:
        ear = Ear(self, self._devices, uid)
        self._devices += 1
        self.write(h.Device(self.now_us(), ear.n, uid, device))
        return ear

    def closed(self, n: int) -> None:
        self.write(h.Closed(self.now_us(), n))

    def conversation(self, name: str) -> int:
        number = self._conversations.get(name)
        if number is None:
            number = self._conversations[name] = len(self._conversations)
            self.write(h.Conversation(self.now_us(), number, name))
        return number

    def members(self, conversation: str, uids: Iterable[str], joined: bool = True) -> None:
        c = self.conversation(conversation)
        for uid in uids:
            self.write(h.Member(self.now_us(), c, uid, joined))

    def compose(self, ear: Ear, conversation: str, body: str) -> tuple[str, bytes]:
        """Call it right before send, with nothing awaited in between."""
        tag, content = h.seal(self._messages, body)
        self._messages += 1
        self.counts.composed += 1
        now = self.now_us()
        self.composed_at[tag] = (now, ear.n)
        self.waiting[tag] = now
        seen = ear.seen.get(conversation, 0)
        self.write(h.Compose(now, ear.n, self.conversation(conversation), tag, seen))
        return tag, content

    def tag_of(self, key: str, content: bytes) -> str:
        """Of the message as it was composed, also when it says something else by now."""
        found = h.tag_of(content)
        return self.tags[key] if found in self._wanted.get(key, ()) else found

    def edit(self, ear: Ear, conversation: str, key: str, body: str) -> tuple[int, bytes]:
        """What is to be asked for and the content; call it right before, as ``compose``."""
        tag, content = h.seal(self._messages, body)
        self._messages += 1
        self._wanted.setdefault(key, set()).add(tag)
        return self._ask(ear, conversation, key, "edit", tag), content

    def recall(self, ear: Ear, conversation: str, key: str) -> int:
        self._wanted.setdefault(key, set()).add(h.tag_of(b""))
        return self._ask(ear, conversation, key, "recall", "")

    def react(self, ear: Ear, conversation: str, key: str, code: str, on: bool) -> int:
        return self._ask(ear, conversation, key, "react" if on else "unreact", code)

    def _ask(self, ear: Ear, conversation: str, key: str, what: str, value: str) -> int:
        ask = self._next_ask()
        c, tag = self.conversation(conversation), self.tags[key]
        self.write(h.Change(self.now_us(), ear.n, c, tag, ask, what, value))
        return ask

    def change_done(self, ask: int) -> None:
        self.write(h.ChangeDone(self.now_us(), ask))

    def read(self, ear: Ear, conversation: str, key: str) -> int:
        """Its user has read up to this message; what is to be answered."""
        ask = self._next_ask()
        c, tag = self.conversation(conversation), self.tags[key]
        self.write(h.Read(self.now_us(), ear.n, c, tag, ask))
        return ask

    def read_done(self, ask: int) -> None:
        self.write(h.ReadDone(self.now_us(), ask))

    def word(self, ear: Ear, kind: str, about: str, value: str) -> int:
        """What is said of friends, settings or groups (``imcore.history.Word``) and to be
        answered."""
        ask = self._next_ask()
        self.write(h.Word(self.now_us(), ear.n, ask, kind, about, value))
        return ask

    def word_done(self, ask: int) -> None:
        self.write(h.WordDone(self.now_us(), ask))

    def _next_ask(self) -> int:
        self._asks += 1
        return self._asks - 1

    def ack(self, ear: Ear, conversation: str, tag: str, acked: Acked) -> None:
        now = self.now_us()
        self.waiting.pop(tag, None)
        self.counts.acked += 1
        self.counts.group_acked += is_group(conversation)
        self.acked_in[conversation] = self.acked_in.get(conversation, 0) + 1
        self.ack_us.append(now - self.composed_at[tag][0])
        self.write(h.Ack(now, ear.n, tag, acked.how))
        hlc, origin, seq = acked.place
        self.write(h.Placed(now, self.conversation(conversation), tag, str(origin), seq, hlc))

    def send_failed(self, ear: Ear, tag: str, reason: str) -> None:
        self.counts.failed += 1
        self.waiting.pop(tag, None)
        self.write(h.SendFailed(self.now_us(), ear.n, tag, reason))

    def phase(self, name: str) -> None:
        self.write(h.Phase(self.now_us(), name))

    def fault(self, idc: str, what: str) -> None:
        self.write(h.Fault(self.now_us(), idc, what))

    def quiet(self, idcs: Sequence[str]) -> None:
        self.write(h.Quiet(self.now_us(), list(idcs)))

    def policy(self, at: str, epoch: int, content: str = "") -> None:
        """What ``at`` said of its policy; noted when it is something else than it said last."""
        if self._policies.get(at) != (epoch, content):
            self._policies[at] = epoch, content
            self.write(h.Policy(self.now_us(), at, epoch, content))

    def replica(self, idc: str, digest: str) -> None:
        self.write(h.Replica(self.now_us(), idc, digest))

    def looking(self, idc: str) -> int:
        """A fresh login begins to look; its number."""
        n = self._logins
        self._logins += 1
        self.write(h.Looking(self.now_us(), n, idc))
        return n

    def login(
        self,
        n: int,
        uid: str,
        idc: str,
        purpose: str,
        views: dict[str, list[Stood]],
        unread: Mapping[str, int],
        standing: Iterable[Standing] = (),
    ) -> None:
        """What the fresh login of this number found, by conversation."""
        now = self.now_us()
        self.write(h.Login(now, n, uid, idc, purpose))
        for conversation, messages in views.items():
            c = self.conversation(conversation)
            tags = [self.tag_of(message.key, message.content) for message in messages]
            self.write(h.View(now, n, c, tags))
            for tag, message in zip(tags, messages, strict=True):
                says, reactions = _says(message.content, message.recalled, message.reactions)
                if says != tag or reactions:
                    self.write(h.ViewSays(now, n, c, tag, says, reactions))
            if conversation in unread:
                self.write(h.Unread(now, n, c, unread[conversation]))
        for found in standing:
            self.write(h.Stands(now, n, *found))
