"""Random interleavings of the rules of docs/architecture.md, on the real cores.

Real: sequencer, fold, the SDK's outbox and view, attestation, HLC. Some messages are refused for
good. Simulated, in virtual time
from one seed: three IDCs' logs with what is durable and what is not, mirrors and relays, cut
links, lost acks, crashes back to what was synced, skewed clocks, clients that move, one IDC lost
for good, and one that comes back wiped as a new incarnation while another was cut off.

A failing seed reproduces exactly: ``run(seed)``. Each of ``ALL_RULES`` has a named case that shows
that the simulation would find it missing. ``place`` is left out together with ``claims``, which
would make up for it; and ``floor`` has a case of its own instead of a seed, because all that it
does is to let a sender go on before the links are mended, and every run ends with that.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import pytest

from imcore.attest import RegionKeys, content_hash
from imcore.convert import attested_of, attested_pb, origin_of, place_of, stamp_of, stamp_pb
from imcore.errors import Code
from imcore.hlc import Hlc
from imcore.proto import client_pb2 as pb
from imcore.proto import oplog_pb2 as oplog
from imcore.words import ClientKey, Lane, Origin
from services.im import entries, keys
from services.im.conversation import Conversation
from services.im.fold import Entry as FoldedEntry
from services.im.fold import Fold, Rows, Taken, needs
from services.im.sequencer import (
    Accept,
    Accepted,
    Joined,
    Known,
    Pending,
    Sequencer,
    Submission,
    Want,
    judge_known,
    unknown_places,
)
from services.ports import Record
from services.sdk.core.events import Event, Message, Moved
from services.sdk.core.outbox import Entry, Outbox
from services.sdk.core.seen import Seen
from services.sdk.core.view import View, key_text

GROUP = "g:sim"
TOO_LARGE = b"too large: "
IDCS = ("fra", "iad", "sin")
REGION_KEYS = RegionKeys({1: b"k" * 32}, 1)
ALL_RULES = frozenset({"relay", "hlc", "floor", "place", "durable", "claims", "reoffer", "seal"})

Ack = Callable[[pb.Response], None]


@dataclass
class SimIdc:
    """One IDC: logs with a durable end each, and the fold of what is durable."""

    name: str
    rules: frozenset[str]
    offset_ms: int
    incarnation: int = 1
    alive: bool = True
    logs: dict[Origin, list[oplog.Op]] = field(default_factory=dict)
    synced: dict[Origin, int] = field(default_factory=dict)
    seals: dict[Origin, int] = field(default_factory=dict)
    waiting: list[tuple[int, Callable[[], None]]] = field(default_factory=list)  # acks, by lsn

    def __post_init__(self) -> None:
        self.forget()

    @property
    def origin(self) -> Origin:
        return Origin(self.name, self.incarnation)

    def forget(self) -> None:
        """Memory and KV are gone: fold the logs again (rule 1)."""
        self.rows: dict[bytes, bytes] = {}
        self.applied: dict[Origin, int] = {}
        self.conversation = Conversation(GROUP)
        self.hlc = Hlc()
        self.sequencer = Sequencer(self.origin, self.hlc)
        self.waiting.clear()

    def crash(self) -> None:
        """Power loss: what was not synced is gone."""
        for origin, log in self.logs.items():
            del log[self.durable(origin) :]
        self.forget()
        self.fold_all()

    def durable(self, origin: Origin) -> int:
        return min(self.synced.get(origin, 0), len(self.logs.get(origin, ())))

    def sync(self) -> None:
        for origin, log in self.logs.items():
            self.synced[origin] = len(log)
        self.fold_all()
        done = [ack for lsn, ack in self.waiting if lsn <= self.durable(self.origin)]
        self.waiting = [w for w in self.waiting if w[0] > self.durable(self.origin)]
        for ack in done:
            ack()

    # ------------------------------------------------------------------------------- fold

    def fold_all(self) -> None:
        for origin in list(self.logs):
            # Without rule 3's durable copies a record would count as soon as it has arrived.
            own = origin == self.origin or "durable" in self.rules
            end = self.durable(origin) if own else len(self.logs[origin])
            end = min(end, self.seals.get(origin, end))
            start = self.applied.get(origin, 0)
            if end > start:
                self._fold(origin, self.logs[origin][start:end])
                self.applied[origin] = end

    def _fold(self, origin: Origin, ops: list[oplog.Op]) -> None:
        rows = Rows({key: self.rows.get(key) for key in needs(0, ops)})
        taken = [Taken(Record(0, 1, 0, b"", op.SerializeToString()), op) for op in ops]
        effects = Fold(0).batch(taken, origin, {GROUP: self.conversation}, rows, 1)
        self.rows.update(rows.puts)
        for key in rows.deletes:
            self.rows.pop(key, None)
        for op in ops:
            self.hlc.observe(op.hlc)
        for client_key in effects.keys:
            self.sequencer.folded(client_key)

    def seal(self, origin: Origin, end: int) -> None:
        """Rule 7: publish again what lies above the seal, then fold without the originals."""
        self.seals[origin] = end
        above = self.logs.get(origin, [])[end : self.durable(origin)]
        if "seal" in self.rules:
            for op in above:
                head = self.conversation.heads.get(self.origin, 0)
                self.append(self.sequencer.republish(op, origin, head, 0))
        if origin in self.logs:
            del self.logs[origin][end:]
        waiting = self.waiting
        if above:
            self.sync()
            waiting = self.waiting
            self.forget()
            self.waiting = waiting
        self.fold_all()

    # ------------------------------------------------------------------------------- sends

    def append(self, op: oplog.Op) -> int:
        log = self.logs.setdefault(self.origin, [])
        log.append(op)
        return len(log)

    def _known_cids(self, lane: Lane) -> set[int]:
        prefix = keys.lane(0, lane)
        return {
            keys.cid_of(key)
            for key, row in self.rows.items()
            if key.startswith(prefix) and oplog.ClassRow.FromString(row).copies
        }

    def send(self, uid: str, send: pb.Send, seen: pb.Stamp, wall_ms: int, ack: Ack) -> None:
        if send.content.startswith(TOO_LARGE):  # judged before its cid is looked at
            response = self._response()
            response.error.code = Code.TOO_LARGE
            ack(response)
            return
        key = ClientKey(uid, "phone", send.outbox, GROUP, send.cid)
        digest = content_hash(send.content)
        placed = attested_of(send.placed) if send.HasField("placed") else None
        if placed is not None and (placed.key != key or not REGION_KEYS.verify(placed)):
            raise AssertionError("an honest client presented a place that does not verify")
        if "place" not in self.rules:
            placed = None
        claims = tuple(attested_of(claim) for claim in send.claims)
        assert all(REGION_KEYS.verify(claim) for claim in claims)
        seen_hlc = REGION_KEYS.seen(stamp_of(seen)) if "hlc" in self.rules else 0
        floor = send.floor if "floor" in self.rules else 1
        submission = Submission(
            key,
            send.content,
            digest,
            floor,
            placed,
            claims if "claims" in self.rules else (),
            0,
            seen_hlc,
        )
        lane = self.sequencer.lane(Lane(*key[:4]))
        if lane is None or floor < lane.floor:
            lane = self.sequencer.open_lane(Lane(*key[:4]), floor)
            lane.known |= self._known_cids(Lane(*key[:4]))
            lane.floor, lane.loaded = floor, True
        head = self.conversation.heads.get(self.origin, 0)
        verdict = self.sequencer.message(submission, head, wall_ms + self.offset_ms)
        if isinstance(verdict, Accept):
            self._accepted(submission, verdict.pending, self.append(verdict.op), ack, False)
        elif isinstance(verdict, Joined):
            self._accepted(submission, verdict.pending, len(self.logs[self.origin]), ack, True)
        elif isinstance(verdict, Want):
            response = self._response()
            response.send_ack.outcome = pb.SendAck.WANT
            response.send_ack.want = verdict.cid
            ack(response)
        else:
            assert isinstance(verdict, Known), verdict
            self._known(submission, head, wall_ms, ack)

    def _known(self, submission: Submission, head: int, wall_ms: int, ack: Ack) -> None:
        row = oplog.ClassRow.FromString(self.rows[keys.client_key(0, submission.key)])
        answer, lower = judge_known(row, submission, self.origin)
        assert isinstance(answer, Accepted)
        lsn = len(self.logs.get(self.origin, ()))
        if lower:
            op = self.sequencer.place_op(submission, answer.place, head, wall_ms + self.offset_ms)
            lsn = self.append(op)
        answer.lsn = 0 if answer.elsewhere else lsn
        self._when_durable(lsn, lambda: ack(self._ack(submission, answer)))

    def _accepted(
        self, submission: Submission, pending: Pending, lsn: int, ack: Ack, joined: bool
    ) -> None:
        answer = Accepted(self.origin, pending.seq, pending.place, lsn, known=joined)
        self._when_durable(lsn, lambda: ack(self._ack(submission, answer)))

    def claim(self, claims: list[pb.Attested], wall_ms: int) -> None:
        """A device that has caught up shows places that are not known here."""
        verified = [attested_of(claim) for claim in claims]
        assert all(REGION_KEYS.verify(claim) for claim in verified)
        rows = [self.rows.get(keys.client_key(0, claim.key)) for claim in verified]
        lower = unknown_places(
            verified, [None if row is None else oplog.ClassRow.FromString(row) for row in rows]
        )
        if lower:
            head = self.conversation.heads.get(self.origin, 0)
            self.append(self.sequencer.claim_op(lower, head, wall_ms + self.offset_ms, 0))
            self.sync()

    def _when_durable(self, lsn: int, answer: Callable[[], None]) -> None:
        if lsn <= self.durable(self.origin):
            answer()
        else:
            self.waiting.append((lsn, answer))

    def _response(self) -> pb.Response:
        return pb.Response(stamp=stamp_pb(REGION_KEYS.stamp(self.hlc.last)))

    def _ack(self, submission: Submission, accepted: Accepted) -> pb.Response:
        response = self._response()
        ack = response.send_ack
        ack.outcome = pb.SendAck.KNOWN if accepted.known else pb.SendAck.ACCEPTED
        attested = REGION_KEYS.attest(
            submission.key,
            submission.content_hash,
            accepted.origin,
            accepted.seq,
            accepted.place,
        )
        ack.placed.CopyFrom(attested_pb(attested))
        ack.lsn = accepted.lsn
        ack.replicated = accepted.elsewhere
        return response

    # ------------------------------------------------------------------------------- reads

    def entry(self, origin: Origin, seq: int) -> pb.Entry:
        op = oplog.Op.FromString(self.rows[keys.entry(0, GROUP, origin, seq)])
        folded = FoldedEntry(origin, op)
        if op.HasField("message"):
            message_key = op.message.key
            class_key = ClientKey(
                message_key.uid, message_key.device, message_key.outbox, GROUP, message_key.cid
            )
            row = oplog.ClassRow.FromString(self.rows[keys.client_key(0, class_key)])
            folded.place = place_of(row.place)
            first = row.copies[0]
            folded.alias = (origin_of(first.origin), first.seq) != (origin, seq)
        return entries.build(folded, REGION_KEYS)

    def order(self) -> list[ClientKey]:
        prefix = keys.order_prefix(0, GROUP)
        found = []
        for key in sorted(k for k in self.rows if k.startswith(prefix)):
            origin, seq = keys.identity_from(self.rows[key])
            wire = oplog.Op.FromString(self.rows[keys.entry(0, GROUP, origin, seq)]).message.key
            found.append(ClientKey(wire.uid, wire.device, wire.outbox, GROUP, wire.cid))
        return found

    def replicated_rows(self) -> dict[bytes, bytes]:
        return {k: v for k, v in self.rows.items() if k[2:3] in keys.REPLICATED_TABLES}


class SimClient:
    """One device: the SDK's cores, and what its application was told."""

    def __init__(self, uid: str, idc: str, rules: frozenset[str]) -> None:
        self.uid, self.idc, self.rules = uid, idc, rules
        self._outboxes = count(2)
        self.outbox = Outbox(f"{uid}-1", lambda: f"{uid}-{next(self._outboxes)}", window=8)
        self.view = View(GROUP, self._told)
        self.seen = Seen()
        self.connection = 0
        self.broken = False
        self.composed: list[Entry] = []  # their keys change when a lane is given up
        self.questions: list[tuple[Entry, list[str]]] = []
        self.acked: set[ClientKey] = set()
        self.shown: list[str] = []
        self.twice: list[str] = []
        self._ever: set[str] = set()
        self.moved = 0

    def _told(self, event: Event) -> None:
        """What an application would do with the events, and nothing else."""
        if isinstance(event, Message):
            if event.key in self._ever:
                self.twice.append(event.key)
            self._ever.add(event.key)
            self.shown.insert(event.index, event.key)
        elif isinstance(event, Moved):
            self.moved += 1
            assert self.shown.pop(event.from_index) == event.key
            self.shown.insert(event.to_index, event.key)

    def compose(self) -> None:
        number = len(self.composed)
        content = TOO_LARGE if number % 5 == 3 else b""
        entry = self.outbox.compose(GROUP, content + f"{self.uid} {number}".encode(), 0)
        self.store()
        self.composed.append(entry)
        self.questions.append((entry, list(self.shown)))

    def store(self) -> None:
        self.outbox.written(self.outbox.take_batch()[1])

    def key(self, entry: Entry) -> ClientKey:
        return ClientKey(self.uid, "phone", entry.lane.outbox, GROUP, entry.cid)

    def connect(self, idc: str) -> None:
        self.connection += 1
        self.broken = False
        if idc != self.idc:
            self.view.served_by_another()
        self.idc = idc
        if "reoffer" in self.rules:
            self.outbox.connected()
        else:
            self.outbox.disconnected()
        self.store()

    def offers(self, idc: SimIdc, wall_ms: int, lossy: Callable[[], bool]) -> None:
        for entry in self.outbox.offers():
            claims = self.view.claims()
            send = pb.Send(
                conversation=GROUP,
                outbox=entry.lane.outbox,
                cid=entry.cid,
                floor=entry.lane.floor(),
                content=entry.content,
                claims=claims,
            )
            if entry.placed is not None:
                send.placed.CopyFrom(entry.placed)
            connection, serving = self.connection, idc.origin
            key = self.key(entry)
            # A connection breaks as a whole: what comes after a lost ack is lost too.
            self.broken = self.broken or lossy()
            lost = self.broken

            def ack(
                response: pb.Response,
                entry: Entry = entry,
                key: ClientKey = key,
                claims: list[pb.Attested] = claims,
                lost: bool = lost,
                connection: int = connection,
                serving: Origin = serving,
            ) -> None:
                if not lost and connection == self.connection:
                    self._acked(entry, key, claims, response, serving)

            idc.send(self.uid, send, self.seen.stamp, wall_ms, ack)

    def _acked(
        self,
        entry: Entry,
        key: ClientKey,
        claims: list[pb.Attested],
        response: pb.Response,
        serving: Origin,
    ) -> None:
        self.seen.observe(response)
        if response.HasField("error"):
            self.outbox.refused(entry)
            self.store()
            return
        ack = response.send_ack
        self.outbox.answered(entry, ack, serving)
        if ack.outcome != pb.SendAck.WANT:
            self.acked.add(key)
            self.view.own(ack.placed, entry.content, 0)
            if ack.outcome == pb.SendAck.ACCEPTED:
                self.view.claimed(claims)
        self.store()

    def claim(self, idc: SimIdc, wall_ms: int) -> None:
        if "claims" in self.rules and (claims := self.view.claims()):
            idc.claim(claims, wall_ms)
            self.view.claimed(claims)

    def pull(self, idc: SimIdc, limit: int) -> None:
        """From the serving IDC, or from another one (a parallel pull)."""
        heads = dict(idc.conversation.heads)
        suspended = [
            pb.SuspendedOrigin(
                origin=pb.Origin(idc=o.idc, incarnation=o.incarnation),
                end=heads.get(o, 0),
                sealed=True,
            )
            for o in idc.seals
        ]
        self.view.ends(suspended)
        found = [
            idc.entry(origin, seq)
            for origin, head in sorted(heads.items())
            for seq in range(self.view.received.prefix.get(origin, 0) + 1, head + 1)
        ]
        found.sort(key=lambda entry: entry.hlc)
        self.view.entries(found[:limit], from_idc=idc.name == self.idc)
        if idc.name == self.idc:
            self.view.heads(heads)
        self.seen.merge(stamp_pb(REGION_KEYS.stamp(idc.hlc.last)))


class Region:
    def __init__(self, seed: int, rules: frozenset[str]) -> None:
        self.rng = random.Random(seed)
        self.rules = rules
        offsets = [0, 0, 5, 40, -40]
        self.idcs = {n: SimIdc(n, rules, self.rng.choice(offsets)) for n in IDCS}
        self.clients = [SimClient(u, self.rng.choice(IDCS), rules) for u in ("ann", "bob", "eve")]
        self.cut: set[tuple[str, str]] = set()
        self.wall_ms = 1_000
        self.lossy = True
        self.lost: str | None = None

    def alive(self) -> list[SimIdc]:
        return [idc for idc in self.idcs.values() if idc.alive]

    # ----------------------------------------------------------------------------- mirrors

    def mirror(self, source: SimIdc, target: SimIdc, origin: Origin, count: int) -> bool:
        """Durable records only, in order (rule 3); never above a seal."""
        have = target.logs.setdefault(origin, [])
        end = min(source.durable(origin), target.seals.get(origin, 1 << 60))
        fresh = source.logs.get(origin, [])[len(have) : min(end, len(have) + count)]
        have.extend(fresh)
        target.fold_all()
        return bool(fresh)

    def relay(self) -> bool:
        """While an origin is away, the longest copy serves the others (rule 3)."""
        moved = False
        origins = {origin for idc in self.alive() for origin in idc.logs}
        for origin in origins:
            best = max(self.alive(), key=lambda idc: idc.durable(origin))
            for idc in self.alive():
                if idc is not best:
                    moved |= self.mirror(best, idc, origin, 1 << 30)
        return moved

    def notify(self, client: SimClient) -> None:
        """`replicated`: another IDC holds the log durably up to there (rules 4, 13)."""
        idc = self.idcs[client.idc]
        if not idc.alive:
            return
        for other in self.idcs.values():
            if other is not idc and other.alive:
                strict = "durable" in self.rules
                held = other.durable(idc.origin) if strict else len(other.logs.get(idc.origin, ()))
                client.outbox.replicated(idc.origin, 0, held)
                client.store()

    # -------------------------------------------------------------------------------- steps

    def step(self) -> None:
        rng = self.rng
        self.wall_ms += rng.randint(0, 8)
        client = rng.choice(self.clients)
        idc = self.idcs[client.idc]
        kind = rng.random()
        if kind < 0.18:
            client.compose()
        elif kind < 0.42:
            if idc.alive:
                client.offers(idc, self.wall_ms, lambda: self.lossy and rng.random() < 0.2)
        elif kind < 0.52:
            rng.choice(self.alive()).sync()
        elif kind < 0.68:
            source, target = rng.sample(self.alive(), 2)
            if (source.name, target.name) not in self.cut:
                self.mirror(source, target, source.origin, rng.randint(1, 3))
        elif kind < 0.78:
            if idc.alive:
                client.pull(idc, rng.choice([1, 2, 100]))
        elif kind < 0.81:
            client.pull(rng.choice(self.alive()), 100)
        elif kind < 0.86:
            self.notify(client)
        elif kind < 0.92:
            client.connect(rng.choice(self.alive()).name)
        elif kind < 0.95:
            self.cut.symmetric_difference_update([tuple(rng.sample(IDCS, 2))])  # type: ignore[list-item]
        elif kind < 0.965:
            victim = rng.choice(self.alive())
            victim.crash()
            self._reconnect(victim.name)
        elif kind > 0.985 and self.lost is None:
            self.lose(rng.choice(IDCS))

    def _reconnect(self, name: str) -> None:
        for client in self.clients:
            if client.idc == name:
                client.connect(name)

    def lose(self, name: str) -> None:
        self.lost = name
        self.idcs[name].alive = False
        for client in self.clients:
            if client.idc == name:
                client.connect(self.rng.choice([i.name for i in self.alive()]))
            elif "reoffer" in self.rules:
                client.outbox.refresh()

    def rebuild(self) -> None:
        """The lost IDC comes back with an empty disk, as a new incarnation. One of the others may
        be cut off meanwhile: the seal is what the rest holds after relaying (rules 6, 7)."""
        assert self.lost is not None
        old = self.idcs[self.lost]
        sealed = old.origin
        reachable = self.alive()
        if self.rng.random() < 0.5:
            reachable = [self.rng.choice(reachable)]
        end = max(idc.durable(sealed) for idc in reachable)
        fresh = SimIdc(self.lost, self.rules, old.offset_ms, old.incarnation + 1)
        self.idcs[self.lost] = fresh
        for idc in self.idcs.values():
            idc.seal(sealed, end)

    def quiesce(self) -> None:
        """Everything heals; everybody goes on until nothing happens any more."""
        self.cut.clear()
        self.lossy = False
        for client in self.clients:  # an ack that was lost: the connection is found dead
            client.connect(client.idc)
        idle = 0
        while idle < 3:
            busy = False
            for idc in self.alive():
                idc.sync()
            for source in self.alive():
                for target in self.alive():
                    if source is not target:
                        busy |= self.mirror(source, target, source.origin, 1 << 30)
            if "relay" in self.rules:
                busy |= self.relay()
            for client in self.clients:
                self.notify(client)
                before = len(client.outbox)
                if self.idcs[client.idc].alive:
                    client.offers(self.idcs[client.idc], self.wall_ms, lambda: False)
                    for lanes in client.outbox._lanes.values():
                        for lane in lanes:
                            client.outbox.release(lane)
                    client.pull(self.idcs[client.idc], 1 << 30)
                    client.claim(self.idcs[client.idc], self.wall_ms)
                busy |= len(client.outbox) != before or bool(self.idcs[client.idc].waiting)
            idle = 0 if busy else idle + 1


def violations(region: Region) -> set[str]:
    found: set[str] = set()
    alive = region.alive()
    if any(idc.replicated_rows() != alive[0].replicated_rows() for idc in alive[1:]):
        found.add("replicas differ for ever")
    orders = {idc.name: [key_text(key) for key in idc.order()] for idc in alive}
    for client in region.clients:
        final = orders.get(client.idc, [])
        if client.shown != final:
            found.add("a view differs from the replicas' order")
        if client.twice:
            found.add("a message was shown twice")
        if len(client.outbox):
            found.add("a sender is stuck")
        for order in orders.values():
            at = {key: index for index, key in enumerate(order)}
            if any(key_text(key) not in at for key in client.acked):
                found.add("an acked message is missing")
            names = [key_text(client.key(entry)) for entry in client.composed]
            own = [at[name] for name in names if name in at]
            if own != sorted(own):
                found.add("a sender's own order is inverted")
            for entry, questions in client.questions:
                answer = at.get(key_text(client.key(entry)))
                if answer is not None and any(at.get(q, -1) > answer for q in questions):
                    found.add("an answer stands before its question")
    return found


def run(seed: int, rules: frozenset[str] = ALL_RULES) -> set[str]:
    region = Region(seed, rules)
    for _ in range(region.rng.randint(20, 110)):
        region.step()
    if region.lost is not None and region.rng.random() < 0.5:
        region.rebuild()
        for _ in range(region.rng.randint(5, 40)):
            region.step()
    region.quiesce()
    return violations(region)


@pytest.mark.parametrize("block", range(8))
def test_no_interleaving_loses_doubles_or_reorders(block: int) -> None:
    size = 250
    bad = {seed: found for seed in range(block * size, (block + 1) * size) if (found := run(seed))}
    assert bad == {}


# A message that an earlier life of the serving IDC had taken: the sender waited for the wrong log.
@pytest.mark.parametrize("seed", [30_825])
def test_a_seed_that_once_found_something(seed: int) -> None:
    assert run(seed) == set()


def found_without(rules: set[str], seeds: range) -> set[str]:
    """What breaks first in these seeds when the rules are left out."""
    return next((found for seed in seeds if (found := run(seed, ALL_RULES - rules))), set())


def stuck_while_cut(rules: frozenset[str]) -> bool:
    """A message is replicated, so its sender forgets it; then the sender comes to an IDC that was
    cut off before it got there. Whether it cannot send until the link is mended."""
    region = Region(0, rules)
    fra, iad, sin = (region.idcs[name] for name in IDCS)
    ann = region.clients[0]
    ann.connect("fra")
    ann.compose()
    ann.offers(fra, region.wall_ms, lambda: False)
    fra.sync()
    region.mirror(fra, iad, fra.origin, 1)
    iad.sync()
    region.notify(ann)
    assert not len(ann.outbox)
    ann.connect("sin")
    ann.compose()
    ann.offers(sin, region.wall_ms, lambda: False)
    sin.sync()
    return ann.key(ann.composed[-1]) not in ann.acked


# Two rules are needed by few interleavings: their search starts near a seed that shows it. A change
# of the cores may change which seed that is; then the search goes on (a minute), and passes.
LEFT_OUT: list[tuple[set[str], str, range]] = [
    ({"relay"}, "replicas differ for ever", range(1_000)),  # rule 3
    ({"durable"}, "replicas differ for ever", range(1_000)),  # rules 3, 4
    ({"hlc"}, "an answer stands before its question", range(5_600, 16_000)),  # rule 10
    ({"seal"}, "a view differs from the replicas' order", range(1_000, 12_000)),  # rule 7
    ({"place", "claims"}, "an answer stands before its question", range(1_000)),  # rule 12
    ({"claims"}, "a view differs from the replicas' order", range(1_000)),  # rule 12
    ({"reoffer"}, "a sender is stuck", range(1_000)),  # rule 11
]


@pytest.mark.parametrize(
    ("rules", "breaks", "seeds"),
    LEFT_OUT,
    ids=["relay", "durable", "carried HLC", "seals", "places", "carried places", "offered again"],
)
def test_leaving_a_rule_out_is_found(rules: set[str], breaks: str, seeds: range) -> None:
    assert breaks in found_without(rules, seeds)


def test_leaving_the_floor_out_is_found() -> None:  # rule 11
    assert not stuck_while_cut(ALL_RULES)
    assert stuck_while_cut(ALL_RULES - {"floor"})


@pytest.mark.nightly
def test_no_interleaving_of_many_loses_doubles_or_reorders() -> None:
    bad = {seed: found for seed in range(2_000, 40_000) if (found := run(seed))}
    assert bad == {}


def test_every_rule_is_left_out_once() -> None:
    assert {"floor"}.union(*(rules for rules, _, _ in LEFT_OUT)) == ALL_RULES
