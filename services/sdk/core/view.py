"""One conversation as this device shows it: ordered, each message once (rules 9, 12, 14). Pure.

Messages of one client key are one class, whatever number of copies was accepted. A class stands
at the smallest place anybody has vouched for and only ever sinks; the client key breaks ties.
What an application is told (``Message``, ``Moved``) turns its list into ``order`` exactly.
"""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple

from google.protobuf.message import DecodeError

from imcore import changes
from imcore.convert import key_of, origin_of, place_of
from imcore.limits import CLAIMS_MAX, MEDIA_MAX
from imcore.media import MediaRef, is_sticker, media_of, media_problem
from imcore.proto import client_pb2 as pb
from imcore.words import ClientKey, Origin, Place, Vector
from services.sdk.core import group
from services.sdk.core.events import Changed, Event, Message, Moved
from services.sdk.core.sealed import NO_ENCRYPTION, Opened
from services.sdk.core.vector import Received


def key_text(key: ClientKey) -> str:
    """The name of a message for applications; only the conversation may contain a slash."""
    return f"{key.uid}/{key.device}/{key.outbox}/{key.cid}/{key.conversation}"


def parse_key(text: str) -> ClientKey:
    """Inverse of ``key_text``. Raises ValueError."""
    uid, device, outbox, cid, conversation = text.split("/", 4)
    return ClientKey(uid, device, outbox, conversation, int(cid))


class _Refs(NamedTuple):
    reply: str
    mentions: tuple[str, ...]
    media: tuple[MediaRef, ...]
    sticker: str


_NO_REFS = _Refs("", (), (), "")


def _closed(key: ClientKey, content: bytes, order: pb.Order | None) -> Opened:
    return Opened(b"", b"", NO_ENCRYPTION)


def _refs(encoded: bytes) -> _Refs:
    """No IDC has looked at what was encrypted: what is no reference is left out."""
    try:
        refs = pb.Refs.FromString(encoded)
    except DecodeError:
        return _NO_REFS
    return _Refs(
        key_text(key_of(refs.reply)) if refs.HasField("reply") else "",
        tuple(refs.mentions),
        tuple(media_of(each) for each in refs.media[:MEDIA_MAX] if not media_problem(each)),
        refs.sticker if is_sticker(refs.sticker) else "",
    )


class Class:
    """A message and where it stands. ``known_at`` is the view's ``era`` in which the present IDC
    was found to know this place."""

    __slots__ = (
        "attested", "composed_ms", "content", "encrypted", "key", "known_at", "late", "place",
        "refs", "why",
    )  # fmt: skip

    def __init__(self, key: ClientKey, place: Place, attested: pb.Attested | None) -> None:
        self.key = key
        self.place = place
        self.attested = attested  # vouches for ``place`` or for a larger one
        self.content = b""  # as it was sent, for as long as it cannot be read
        self.encrypted = False
        self.why = ""  # it cannot be read
        self.refs = _NO_REFS
        self.composed_ms = 0
        self.late = False
        self.known_at = 0


class View:
    """``emit`` is called with each event as it happens."""

    def __init__(self, conversation: str, emit: Callable[[Event], None]) -> None:
        self.conversation = conversation
        self.received = Received()
        self.order: list[tuple[Place, ClientKey]] = []
        self.classes: dict[ClientKey, Class] = {}
        self.stable = 0
        self._emit = emit
        # What an encrypted message, or an edit, says; and what the edits of now were found to say.
        self.opener: Callable[[ClientKey, bytes, pb.Order | None], Opened] = _closed
        self._edits: dict[ClientKey, tuple[pb.Edit, Opened]] = {}
        self._unread: set[ClientKey] = set()
        # Told of each new entry whose message is followed.
        self.traced: Callable[[pb.Entry], None] | None = None
        # Places of messages that are still to come, and in which era the IDC knew them.
        self._waiting: dict[ClientKey, tuple[Place, pb.Attested | None, int]] = {}
        self._next_stable: tuple[int, Vector] = (0, {})
        self._idc_has: Vector = {}  # what the present IDC is known to have applied
        self._era = 1
        self._suspects: dict[ClientKey, Class] = {}
        self._changes: dict[ClientKey, pb.Changes] = {}  # may come before the message
        # What they were made of: above a seal it is void.
        self._made_of: dict[ClientKey, dict[tuple[Origin, int], pb.ChangeEntry]] = {}
        self._changed_to: Vector = {}  # the highest positions of changes, by origin
        self._left_by: tuple[Origin, int] | None = None  # the entry that told it, out of its turn
        self._read: dict[str, Place] = {}  # how far each user has read, as told

    # -------------------------------------------------------------------------- receiving

    def entries(self, entries: Iterable[pb.Entry], from_idc: bool, track: bool = True) -> int:
        """Take entries in the order they came; returns how many positions were new.

        ``from_idc``: they came from the IDC that serves this device (it has applied them, and
        knows their places), not by a pull from elsewhere. ``track`` False: history, shown without
        counting as received."""
        new = 0
        for entry in entries:
            origin, seq = origin_of(entry.origin), entry.seq
            if from_idc and seq > self._idc_has.get(origin, 0) and track:
                self._idc_has[origin] = seq
            fresh = track and self.received.add(origin, seq)
            if fresh:
                new += 1
                if self.traced is not None and entry.HasField("trace"):
                    self.traced(entry)
            # Before the message: they are of earlier ones of its sender, which would else stand
            # behind it for a moment.
            for claim in entry.claims:
                self._lower(key_of(claim.key), place_of(claim.place), claim, from_idc)
            kind = entry.WhichOneof("kind")
            if kind == "message":
                message = entry.message
                self._message(
                    message.placed,
                    message.content,
                    message.composed_ms,
                    message.refs,
                    from_idc,
                    track,
                    message.encrypted,
                )
            elif kind == "place_op":
                op = entry.place_op
                self._lower(key_of(op.key), place_of(op.place), None, from_idc)
            elif kind == "change":
                if seq <= self.received.sealed.get(origin, seq):
                    self._change(entry.change, (origin, seq))
            elif kind == "membership" and fresh and (origin, seq) != self._left_by:
                self._emit(group.changed(self.conversation, entry.membership))
        if self._next_stable[0]:
            self._raise_stable()
        return new

    def left(self, entries: Iterable[pb.Entry]) -> None:
        """This user is no member any more, by this entry. Should he be one again, what is missing
        until then comes as well."""
        for entry in entries:
            at = origin_of(entry.origin), entry.seq
            if at != self._left_by and not self.received.has(*at):
                self._left_by = at
                self._emit(group.changed(self.conversation, entry.membership))
        self.received.give_up()

    def own(
        self,
        placed: pb.Attested,
        content: bytes,
        composed_ms: int,
        refs: bytes = b"",
        encrypted: bool = False,
    ) -> None:
        """An own message was acked by the serving IDC. Its position comes by push or pull."""
        self._message(placed, content, composed_ms, refs, True, True, encrypted)

    def _message(
        self,
        placed: pb.Attested,
        content: bytes,
        composed_ms: int,
        refs: bytes,
        from_idc: bool,
        live: bool,
        encrypted: bool,
    ) -> None:
        key, place = key_of(placed.key), place_of(placed.place)
        shown = self.classes.get(key)
        if shown is not None:
            self._sink(shown, place, placed, from_idc)
            return
        waiting = self._waiting.pop(key, None)
        known = from_idc
        attested: pb.Attested | None = placed
        if waiting is not None and waiting[0] < place:
            place, known = waiting[0], waiting[2] == self._era
            attested = waiting[1] or placed
        made = self.classes[key] = Class(key, place, attested)
        made.content, made.composed_ms = content, composed_ms
        made.refs = _refs(refs) if refs and not encrypted else _NO_REFS
        # One that was recalled has no content any more, and its reason would say nothing.
        made.encrypted = encrypted
        if encrypted and content:
            self._read_class(made)
        made.known_at = self._era if known else 0
        if not known:
            self._suspects[key] = made
        made.late = live and place.hlc <= self.stable
        index = self._insert(place, key)
        self._emit(self._shown(made, index))
        if key in self._changes:
            self._emit(self.changed(key))

    def _change(self, change: pb.ChangeEntry, at: tuple[Origin, int]) -> None:
        key = key_of(change.key)
        self._made_of.setdefault(key, {})[at] = change
        self._changed_to[at[0]] = max(at[1], self._changed_to.get(at[0], 0))
        folded = self._changes.setdefault(key, pb.Changes())
        if changes.merge(folded, change) and key in self.classes:
            self._emit(self.changed(key))

    def changed(self, key: ClientKey) -> Changed:
        """What changes have made of a shown message by now. Raises KeyError."""
        content, why = self._content(self.classes[key])
        folded = self._changes.get(key, pb.Changes())
        reactions = tuple((row.uid, row.code) for row in folded.reactions if row.on)
        return Changed(self.conversation, key_text(key), content, folded.recalled, reactions, why)

    def _content(self, shown: Class) -> tuple[bytes, str]:
        """What it says now, and why that cannot be read."""
        folded = self._changes.get(shown.key)
        if folded is None or not (folded.recalled or folded.HasField("edit")):
            return (b"" if shown.why else shown.content), shown.why
        if folded.recalled:
            return b"", ""
        edit = folded.edit
        if not edit.encrypted:
            return edit.content, ""
        known = self._edits.get(shown.key)
        if known is None or known[0] != edit:
            held = pb.Edit()
            held.CopyFrom(edit)
            known = self._edits[shown.key] = (
                held, self.opener(shown.key, held.content, held.order),
            )  # fmt: skip
            if known[1].why:
                self._unread.add(shown.key)
        return known[1].content, known[1].why

    def _read_class(self, made: Class) -> None:
        opened = self.opener(made.key, made.content, None)
        made.why = opened.why
        if opened.why:
            self._unread.add(made.key)
            return
        made.content = opened.content
        made.refs = _refs(opened.refs) if opened.refs else _NO_REFS

    def read_again(self) -> None:
        """A key has come: what could not be read may be readable now."""
        unread, self._unread = self._unread, set()
        for key in unread:
            shown = self.classes[key]
            was = self._edits.get(key)
            before = (shown.why, was[1].why if was is not None else "")
            if was is not None and was[1].why:
                del self._edits[key]
            if shown.why:
                self._read_class(shown)
            changed = self.changed(key)
            now = self._edits.get(key)
            if (shown.why, now[1].why if now is not None else "") != before:
                self._emit(changed)

    def _shown(self, made: Class, index: int) -> Message:
        key, folded = made.key, self._changes.get(made.key)
        recalled = folded is not None and folded.recalled
        refs = _NO_REFS if recalled else made.refs
        content, why = self._content(made)
        return Message(
            self.conversation,
            key_text(key),
            key.uid,
            key.device,
            content,
            index,
            made.late,
            made.composed_ms,
            refs.reply,
            refs.mentions,
            made.encrypted,
            why,
            refs.media,
            refs.sticker,
        )

    def _insert(self, place: Place, key: ClientKey) -> int:
        order = self.order
        item = (place, key)
        if not order or order[-1] < item:  # the common case
            order.append(item)
            return len(order) - 1
        index = bisect_left(order, item)
        order.insert(index, item)
        return index

    def _lower(
        self, key: ClientKey, place: Place, attested: pb.Attested | None, from_idc: bool
    ) -> None:
        """A place op or a claim: this client key stands at ``place`` or below."""
        shown = self.classes.get(key)
        if shown is not None:
            self._sink(shown, place, attested, from_idc)
            return
        waiting = self._waiting.get(key)
        if waiting is None or place < waiting[0]:
            self._waiting[key] = (place, attested, self._era if from_idc else 0)

    def _sink(
        self, shown: Class, place: Place, attested: pb.Attested | None, from_idc: bool
    ) -> None:
        if place > shown.place:
            return
        if attested is not None:
            shown.attested = attested
        if from_idc:
            shown.known_at = self._era
            self._suspects.pop(shown.key, None)
        elif place < shown.place:
            shown.known_at = 0
            self._suspects[shown.key] = shown
        if place == shown.place:
            return
        before = bisect_left(self.order, (shown.place, shown.key))
        del self.order[before]
        shown.place = place
        after = self._insert(place, shown.key)
        if after != before:
            self._emit(Moved(self.conversation, key_text(shown.key), before, after))

    # ------------------------------------------------------------------- positions, stable

    def heads(self, heads: Mapping[Origin, int], stable: int = 0) -> None:
        """What the serving IDC has applied, and its stable watermark then."""
        self.received.expect(heads)
        for origin, seq in heads.items():
            if seq > self._idc_has.get(origin, 0):
                self._idc_has[origin] = seq
        self.offer_stable(stable, heads)

    def offer_stable(self, stable: int, heads: Mapping[Origin, int] | None = None) -> None:
        """It counts once all that it covers was received: a message that this device merely had
        not fetched is not late."""
        if stable > max(self.stable, self._next_stable[0]):
            self._next_stable = (stable, dict(heads or {}))
            self._raise_stable()

    def _raise_stable(self) -> None:
        stable, heads = self._next_stable
        received = self.received
        if received.covers(heads) and not received.behind():
            self.stable = max(self.stable, stable)
            self._next_stable = (0, {})

    def ends(self, suspended: Iterable[pb.SuspendedOrigin]) -> None:
        """Of origins that are down, as a pull tells (``Received``)."""
        open_: Vector = {}
        sealed: Vector = {}
        for item in suspended:
            (sealed if item.sealed else open_)[origin_of(item.origin)] = item.end
        known = dict(self.received.sealed)
        self.received.ends(open_, sealed)
        if self.received.sealed != known:
            self._undo()

    def ahead(self, heads: Mapping[Origin, int]) -> bool:
        """Whether changes stand here that an IDC with these heads does not have: it may know of a
        seal below them, and tells that with a pull."""
        return any(seq > heads.get(origin, 0) for origin, seq in self._changed_to.items())

    def _undo(self) -> None:
        """Changes above a seal were taken by an IDC that is lost: no other has them. One that has
        was asked again, or published it again, as an entry of another origin."""
        ends = self.received.sealed
        for origin, seq in self._changed_to.items():
            self._changed_to[origin] = min(ends.get(origin, seq), seq)
        for key, made_of in self._made_of.items():
            void = [at for at in made_of if at[1] > ends.get(at[0], at[1])]
            if not void:
                continue
            for at in void:
                del made_of[at]
            folded = pb.Changes()
            for change in made_of.values():
                changes.merge(folded, change)
            was, self._changes[key] = self._changes[key], folded
            if folded != was and key in self.classes:
                self._emit(self.changed(key))

    # -------------------------------------------------------------------------- connection

    def served_by_another(self) -> None:
        """Another IDC serves this device: what it knows has to be learned anew."""
        self._era += 1
        self._idc_has = {}
        self._suspects = dict(self.classes)

    def claims(self) -> list[pb.Attested]:
        """The places of shown messages, own ones too, that the serving IDC may not know, in
        order, so whole prefixes of every sender. They go with every send, and by themselves when
        the IDC has caught up. Empty when it has applied what this device shows."""
        if not self._suspects:
            return []
        for key, suspect in list(self._suspects.items()):
            place = suspect.place
            if suspect.known_at == self._era or place.seq <= self._idc_has.get(place.origin, 0):
                suspect.known_at = self._era
                del self._suspects[key]
        ordered = sorted(self._suspects.values(), key=lambda suspect: (suspect.place, suspect.key))
        found = [suspect.attested for suspect in ordered[:CLAIMS_MAX]]
        return [attested for attested in found if attested is not None]

    @property
    def suspicious(self) -> bool:
        """Whether ``claims`` may give any."""
        return bool(self._suspects)

    def claimed(self, claims: Iterable[pb.Attested]) -> None:
        """The serving IDC has logged these."""
        for claim in claims:
            suspect = self._suspects.pop(key_of(claim.key), None)
            if suspect is not None:
                suspect.known_at = self._era

    # ----------------------------------------------------------------------------- reading

    def messages(self) -> tuple[Message, ...]:
        return tuple(
            self._shown(self.classes[key], index) for index, (_, key) in enumerate(self.order)
        )

    def stable_count(self) -> int:
        """How many of them lie at or below the stable watermark."""
        return bisect_right(self.order, self.stable, key=lambda item: item[0].hlc)

    def read(self, uid: str, place: Place) -> bool:
        """Whether this read cursor is not below the one that was told before: after a move, an IDC
        that is behind tells those again that the last one had told already."""
        if place < self._read.get(uid, place):
            return False
        self._read[uid] = place
        return True

    def at_or_below(self, place: Place) -> ClientKey | None:
        """The last message that stands at or below a place (a read cursor's)."""
        index = bisect_left(self.order, place, key=lambda item: item[0])
        if index < len(self.order) and self.order[index][0] == place:
            return self.order[index][1]
        return self.order[index - 1][1] if index else None
