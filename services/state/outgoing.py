"""What goes to sessions unasked: pushes, signals, moves, replicated acks. Implements ``Pushes``.

An event is encoded once, whatever the number of its receivers; no task is made on the way.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

from opentelemetry.trace import Span

from imcore import frame
from imcore.convert import fill_positions, origin_pb
from imcore.packing import pack
from imcore.proto import client_pb2 as pb
from imcore.runtime import Clock
from imcore.words import Origin, Vector
from services.gateway.wheel import TimingWheel
from services.ports import Audience, GatewayQueue, Session
from services.state.reached import SLICE, ReachedGroups, Slice, by_gateway
from services.state.session import Record
from services.state.spread import Spread
from services.state.table import SessionTable
from services.tracing.spans import Tracing, context_of, end

TICK_S = 0.1  # resolution of the timers here
SIGNAL_S = 2.0  # owed for longer: a signal, and again at doubling intervals
_SIGNAL_DOUBLINGS = 4
_SIGNALS_AT_ONCE = 200
_REPLICATED_FLUSH_S = 0.03
_PUSH_BYTES_MAX = frame.MESSAGE_BYTES_MAX - 4096  # leaves room for the event around the entries


@dataclass(slots=True)
class Counters:
    pushed: int = 0
    signalled: int = 0
    resumed: int = 0
    replaced: int = 0
    kicked: int = 0
    drained: int = 0  # closed because it did not go when it was told to
    overflowed: int = 0
    deadlines: int = 0


class Outgoing:
    def __init__(self, clock: Clock, stamp: Callable[[], pb.Stamp]) -> None:
        self._clock = clock
        self._stamp = stamp
        self.counters = Counters()
        self.gateways: dict[str, GatewayQueue] = {}
        self._table = SessionTable()
        self._reached = ReachedGroups(self._table)
        self._spread = Spread(clock)
        self.patience_s = 0.0  # what is merged may be un-acked for so long
        self._owing: TimingWheel[Record] = TimingWheel()
        self._unreplicated: dict[int, dict[Record, None]] = {}
        self._replicated: dict[int, tuple[Origin, int]] = {}
        self._levels: dict[int, tuple[Origin, int]] = {}  # what was last told of each partition
        self._flushing = False
        self._tracing: Tracing | None = None

    # --------------------------------------------------------------------------- Pushes (im)

    def push_entries(
        self,
        conversation: str,
        uids: Sequence[str],
        entries: Sequence[pb.Entry],
        heads: Vector,
        stable: int,
    ) -> None:
        receivers = self._table.of_users(uids)
        if not receivers:
            return
        now, heads = self._clock.now(), dict(heads)  # the caller's goes on, what is owed does not
        connected = []
        for record in receivers:
            record.owe(conversation, heads, now)
            if record.connected:
                connected.append(record)
                if record.patient or record not in self._owing:
                    self._signal_later(record)
        if connected:
            self.counters.pushed += len(connected)
            spans = self._followed(entries, len(connected)) if self._tracing is not None else ()
            for body, _ in self._push_events(conversation, entries, stable):
                self._emit_body(by_gateway(connected), body)
            for span in spans:
                end(span)

    def reached(self, audience: Audience) -> int:
        return self._reached.of(audience).users

    def waiting(self) -> int:
        return len(self._spread) * SLICE

    def push_group(
        self,
        audience: Audience,
        entries: Sequence[pb.Entry],
        heads: Vector,
        stable: int,
        merged: bool,
    ) -> None:
        reached, conversation = self._reached.of(audience), audience.conversation
        self.counters.pushed += reached.connected
        spans = self._followed(entries, reached.connected) if self._tracing is not None else ()
        bodies = list(
            self._push_events(conversation, entries, stable, merged, reached.unpacking > 0)
        )
        for span in spans:
            end(span)
        since, heads = self._clock.now() + (self.patience_s if merged else 0.0), dict(heads)
        self._spread.add(
            partial(self._push_slice, part, conversation, heads, since, bodies)
            for part in reached.slices
        )

    def _push_slice(
        self,
        part: Slice,
        conversation: str,
        heads: Vector,
        since: float,
        bodies: Sequence[tuple[bytes, bytes]],
    ) -> None:
        self._owe_all(part.records, conversation, heads, since)
        for body, packed in bodies:
            self._emit_body(part.plain, body)
            self._emit_body(part.unpacking, packed)

    def _owe_all(
        self, records: Sequence[Record], conversation: str, heads: Vector, since: float
    ) -> None:
        patience_s, owing = since - self._clock.now(), self._owing
        for record in records:
            record.owe(conversation, heads, since)
            sooner = record.patient and patience_s <= 0
            if record.connected and (sooner or record not in owing):
                self._signal_later(record, patience_s)

    def tell_behind(self, behind: Sequence[tuple[Audience, Vector, int]], within_ms: int) -> None:
        groups: dict[Record, list[int]] = {}
        since = self._clock.now() + self.patience_s
        for number, (audience, heads, _) in enumerate(behind):
            owed = dict(heads)
            for part in self._reached.of(audience).slices:
                self._owe_all(part.records, audience.conversation, owed, since)
                for record in part.records:
                    if record.connected:
                        groups.setdefault(record, []).append(number)
        alike: dict[tuple[int, ...], list[Record]] = {}
        for record, numbers in groups.items():
            alike.setdefault(tuple(numbers), []).append(record)
        for named, receivers in alike.items():
            event = pb.Event(stamp=self._stamp())
            event.behind.within_ms = within_ms
            for audience, heads, stable in (behind[number] for number in named):
                told = event.behind.conversations.add(conversation=audience.conversation)
                fill_positions(told.heads, heads)
                told.stable = stable
            self.counters.signalled += len(receivers)
            body = event.SerializeToString()
            self._spread.add(
                partial(self._emit_body, by_gateway(receivers[begin : begin + SLICE]), body)
                for begin in range(0, len(receivers), SLICE)
            )

    def _followed(self, entries: Sequence[pb.Entry], devices: int) -> list[Span]:
        """Each followed entry goes out under the span of its push."""
        spans = []
        for entry in entries:
            if self._tracing is not None and entry.HasField("trace"):
                span = self._tracing.begin("push", entry.trace, devices=devices)
                entry.trace.CopyFrom(context_of(span))
                spans.append(span)
        return spans

    def _push_events(
        self,
        conversation: str,
        entries: Sequence[pb.Entry],
        stable: int,
        merged: bool = False,
        packing: bool = False,
    ) -> Iterator[tuple[bytes, bytes]]:
        """Encoded; more than one when one cannot hold them. Of each, second, what goes to those who
        unpack: the same where nobody does, or where packing it does not pay."""
        event = pb.Event()
        event.stamp.CopyFrom(self._stamp())
        event.push.conversation = conversation
        event.push.entries.extend(entries)
        event.push.stable = stable
        event.push.merged = merged
        body = event.SerializeToString()
        if len(body) > _PUSH_BYTES_MAX and len(entries) > 1:
            half = len(entries) // 2
            yield from self._push_events(conversation, entries[:half], stable, merged, packing)
            yield from self._push_events(conversation, entries[half:], stable, merged, packing)
        elif len(body) <= frame.MESSAGE_BYTES_MAX:
            packed = pack(event.push.SerializeToString()) if packing else None
            if packed is None:
                yield body, body
            else:
                yield body, pb.Event(stamp=event.stamp, packed=packed).SerializeToString()

    def signal(self, uids: Sequence[str], conversation: str, heads: Vector) -> None:
        """Of what another IDC has: it is not owed before it is folded here."""
        receivers = [record for record in self._table.of_users(uids) if record.connected]
        if receivers:
            self._emit(receivers, self._signal_event(conversation, heads))

    def owe(self, uid: str, conversation: str, heads: Vector) -> None:
        """What this user's sessions should come to have; nobody pushed it to them."""
        now, owed = self._clock.now(), dict(heads)
        receivers = []
        for record in self._table.of_users([uid]):
            record.owe(conversation, owed, now)
            if record.connected:
                receivers.append(record)
                if record.patient or record not in self._owing:
                    self._signal_later(record)
        if receivers:
            self._emit(receivers, self._signal_event(conversation, heads))

    def cursor_moved(self, uid: str, event: pb.CursorMoved) -> None:
        self.tell([uid], pb.Event(cursor_moved=event))

    def tell(self, uids: Sequence[str], event: pb.Event) -> None:
        self._tell_connected(self._table.of_users(uids), event)

    def tell_devices(self, devices: Sequence[tuple[str, str]], event: pb.Event) -> None:
        found = [self._table.of_device(uid, device) for uid, device in devices]
        self._tell_connected([record for record in found if record is not None], event)

    def _tell_connected(self, records: Sequence[Record], event: pb.Event) -> None:
        receivers = [record for record in records if record.connected]
        if receivers:
            event.stamp.CopyFrom(self._stamp())
            self._emit(receivers, event)

    def accepted(self, session: Session, origin: Origin, partition: int, lsn: int) -> None:
        if isinstance(session, Record) and lsn:
            session.lsns[partition] = max(lsn, session.lsns.get(partition, 0))
            session.unreplicated[partition] = max(lsn, session.unreplicated.get(partition, 0))
            self._unreplicated.setdefault(partition, {})[session] = None

    def replicated(self, origin: Origin, partition: int, lsn: int) -> None:
        """Told in batches: nothing that a person waits for hangs on it."""
        self._replicated[partition] = (origin, lsn)
        if not self._flushing:
            self._flushing = True
            asyncio.get_running_loop().call_later(_REPLICATED_FLUSH_S, self._flush_replicated)

    def _flush_replicated(self) -> None:
        """A session that is away is not told: when it is back, it offers its outbox again and
        learns from the answers."""
        self._flushing = False
        self._levels.update(self._replicated)
        for partition, (origin, lsn) in self._replicated.items():
            waiting = self._unreplicated.get(partition)
            if not waiting:
                continue
            event = self._replicated_event(partition, origin, lsn)
            self._emit([record for record in waiting if record.connected], event)
            for record in list(waiting):
                if record.unreplicated.get(partition, 0) <= lsn:
                    waiting.pop(record, None)
                    record.unreplicated.pop(partition, None)
        self._replicated.clear()

    def _replicated_event(self, partition: int, origin: Origin, lsn: int) -> pb.Event:
        event = pb.Event(stamp=self._stamp())
        event.replicated.origin.CopyFrom(origin_pb(origin))
        event.replicated.partition = partition
        event.replicated.lsn = lsn
        return event

    def _tell_again(self, record: Record) -> None:
        """Events to this session were dropped. Entries are named by signals; a lost `replicated`
        would keep messages in an outbox for as long as the connection stands. The rest is owed to
        nobody, and the client asks."""
        for name, owed in list(record.owed.items())[:_SIGNALS_AT_ONCE]:
            self._emit([record], self._signal_event(name, owed.heads))
        for partition in record.lsns:
            if partition in self._levels:
                self._emit([record], self._replicated_event(partition, *self._levels[partition]))
        self._emit([record], pb.Event(stamp=self._stamp(), missed=pb.Missed()))

    # ---------------------------------------------------------------------------- what is owed

    def _signal_later(self, record: Record, patience_s: float = 0.0) -> None:
        """Nothing that it is owed is late before ``patience_s``: a look before that would be one at
        each of thousands of sessions, for nothing."""
        record.patient = patience_s > 0
        after_s = max(0.0, patience_s) + SIGNAL_S * (1 << min(record.signals, _SIGNAL_DOUBLINGS))
        self._owing.schedule(record, round(after_s / TICK_S))

    def _look(self, due: Sequence[Record]) -> None:
        """Members of a huge group who have not acked a push are due together."""
        if len(due) <= SLICE:
            self._signal_owed_to(due)
        else:
            parts = (due[begin : begin + SLICE] for begin in range(0, len(due), SLICE))
            self._spread.add(partial(self._signal_owed_to, part) for part in parts)

    def _signal_owed_to(self, records: Sequence[Record]) -> None:
        for record in records:
            self._signal_owed(record)

    def _signal_owed(self, record: Record) -> None:
        """Pushes get lost between here and the client; what stays un-acked is named again."""
        if not record.owed:
            record.signals = 0
        elif record.connected:
            now = self._clock.now()
            late = record.behind(now, SIGNAL_S)
            for name, owed in late[:_SIGNALS_AT_ONCE]:
                self._emit([record], self._signal_event(name, owed.heads))
            record.signals = record.signals + 1 if late else 0
            self._signal_later(record, min(self.patience_s, record.waits_since() - now))

    def _signal_event(self, conversation: str, heads: Vector) -> pb.Event:
        self.counters.signalled += 1
        event = pb.Event(stamp=self._stamp())
        event.signal.conversation = conversation
        fill_positions(event.signal.heads, heads)
        return event

    # ------------------------------------------------------------------------------- sending

    def _emit(self, receivers: Iterable[Record], event: pb.Event) -> None:
        self._emit_body(by_gateway(receivers), event.SerializeToString())

    def _emit_body(self, connections: Mapping[str, Sequence[int]], body: bytes) -> None:
        for gateway, numbers in connections.items():
            queue = self.gateways.get(gateway)
            if queue is not None:
                queue.push(numbers, body)
