"""One partition at work: sequencer, own log and applier together; the thin shell around them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Sequence

from imcore.errors import Code, ImError, OutcomeUnknown, Refused, StaleWriter, Unavailable
from imcore.hlc import Hlc
from imcore.proto import oplog_pb2 as oplog
from imcore.runtime import Clock
from imcore.sometimes import FENCED, TAKEN_OVER, sometimes
from imcore.words import Attested, ClientKey, Lane, Origin
from services.im import keys
from services.im.applier import Applier, Told
from services.im.behind import Behind
from services.im.cache import ConversationCache
from services.im.fold import Effects
from services.im.replication import ReplicationTracker
from services.im.sequencer import (
    Accept,
    Accepted,
    Conflict,
    Joined,
    Known,
    Names,
    Pending,
    Sealed,
    Sequencer,
    Submission,
    Want,
    judge_known,
    unknown_places,
)
from services.ports import NO_BACKLOG, Backlog, Kv, Log, LogStore, Record

log = logging.getLogger("im.sequencer")

_LANE_SCAN = 4096
_REPAIR_S = 0.25  # doubled up to the next one while it fails
_REPAIR_MAX_S = 1.0
_LATER = (Unavailable, OutcomeUnknown, OSError)  # an engine may come back


Outcome = Accepted | Want | Exception
Done = Callable[[Outcome], None]


class Partition:
    def __init__(
        self,
        number: int,
        origin: Origin,
        own_log: Log,
        kv: Kv,
        logs: LogStore,
        hlc: Hlc,
        clock: Clock,
        replicas: int,
        others: int,
        told: Callable[[int, Origin, Effects], None],
        timeline_members_max: int,
    ) -> None:
        self.number = number
        self.origin = origin
        self._log = own_log
        self.kv = kv
        self._clock = clock
        self._hlc = hlc
        self.conversations = ConversationCache(kv, number)
        self.sequencer = Sequencer(origin, hlc)
        self.replication = ReplicationTracker(replicas, others)
        told_here: Told = lambda origin_, effects: told(number, origin_, effects)  # noqa: E731
        self.applier = Applier(
            number, kv, logs, self.conversations, hlc, told_here, timeline_members_max
        )
        self.applier.begins_again = self.sequencer.forget_known
        self.seal_of: Callable[[Origin, int], int | None] = lambda origin, partition: None
        self._behind = Behind()
        self._epoch = 0
        self._sequencer_id = b""
        self._failed: Exception | None = Unavailable("it is not open yet")
        self.sequencer.close(self._refusal())
        self._waiters: dict[ClientKey, list[Done]] = {}
        self._repairing: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------------- take-over

    async def open(self, sequencer_id: bytes) -> None:
        """Fold what the logs hold, then open an epoch with a marker (rule 5) and take sends. For as
        long as an engine is away it is tried again. Raises what no waiting helps against."""
        self._sequencer_id = sequencer_id
        self._repairing = asyncio.ensure_future(self._take_over(0.0, _LATER))
        try:
            await self._repairing
        finally:
            self._repairing.cancel()

    async def _take_over(self, delay: float, temporary: tuple[type[Exception], ...]) -> None:
        """Until the partition takes sends: at its start, and after an append that has failed."""
        again = delay > 0
        while self._failed is not None:
            await asyncio.sleep(delay)
            delay = min(max(2 * delay, _REPAIR_S), _REPAIR_MAX_S)
            try:
                await self._log.reopen(self.number)
                await self._open_epoch()
                if again:
                    sometimes(TAKEN_OVER)
            except StaleWriter as error:  # another process has it now: never again
                self._fail(error)
                raise
            except temporary as error:
                self._fail(error)

    async def _repair(self) -> None:
        with contextlib.suppress(StaleWriter):
            # Whatever it is: nobody else will try again.
            await self._take_over(_REPAIR_S, (Exception,))

    async def _open_epoch(self) -> None:
        """What was sent before may have come into the log after all, and is folded by now; it may
        even come in now, but not behind the marker. So the marker must be the next record. And the
        KV may have been taken back (a storage failover): it is no word on what has been given out
        before it has folded the log to its end."""
        await self.applier.drain()
        end, folded = self._log.end(self.number), self.applier.lsn(self.origin)
        if folded < end.lsn:
            why = self.applier.above_level
            raise Unavailable(why or f"the log ends at {end.lsn}, and is folded up to {folded}")
        self._epoch = end.epoch + 1
        op = self.sequencer.plain("", self._clock.wall_ms(), 0)
        op.marker.sequencer = self._sequencer_id
        record = await self.append(op)
        if record.lsn != end.lsn + 1:
            raise Unavailable(f"the marker came to be {record.lsn}, and not next to {end.lsn}")
        if end.epoch:  # whoever wrote before, dead or not, writes nothing behind the marker
            sometimes(FENCED)
        # In the turn in which ops are taken again: what was given out for ops that the failure took
        # along must not be counted on.
        self.sequencer.reset()
        self._failed = None
        log.info("partition %d of %s is open in epoch %d", self.number, self.origin, self._epoch)

    # --------------------------------------------------------------------------- appends

    def put(self, op: oplog.Op, done: Callable[[Record | Exception], None]) -> None:
        """Append; ``done`` from the loop when it is durable, or with why it is not."""
        if self._failed is not None and not op.HasField("marker"):
            done(Unavailable(self._refusal(), 500))
            return

        def durable(result: Sequence[Record] | Exception) -> None:
            if isinstance(result, Exception):
                self._append_failed(result)
                done(result)
            else:
                done(result[0])
                self.applier.wake()

        self._log.append(self.number, self._epoch, [op.SerializeToString()], durable)

    async def append(self, op: oplog.Op) -> Record:
        return await self._appended(op)

    def _appended(self, op: oplog.Op) -> asyncio.Future[Record]:
        future: asyncio.Future[Record] = asyncio.get_running_loop().create_future()

        def done(result: Record | Exception) -> None:
            if future.done():
                return
            if isinstance(result, Exception):
                future.set_exception(result)
            else:
                future.set_result(result)

        self.put(op, done)
        return future

    def _append_failed(self, error: Exception) -> None:
        """Nothing un-durable may be built upon: forget it, cut it, open a new epoch (rule 5)."""
        if self._failed is None:
            self._fail(error)
        if self._repairing is None or self._repairing.done():
            self._repairing = asyncio.ensure_future(self._repair())

    def _fail(self, error: Exception) -> None:
        if self._failed is None or str(error) != str(self._failed):
            known = isinstance(error, ImError | OSError)
            trace = None if known else error
            log.error(
                "partition %d of %s failed: %s", self.number, self.origin, error, exc_info=trace
            )
        self._failed = error
        self.sequencer.close(self._refusal())

    def _refusal(self) -> str:
        return f"partition {self.number} cannot be written: {self._failed}"

    @property
    def epoch(self) -> int:
        """The sequencer's; 0: none is open yet."""
        return self._epoch

    @property
    def open_for_writes(self) -> bool:
        return self._failed is None

    def backlog(self) -> Backlog:
        """Of the own log. What is folded again, below a seal, waits for something else."""
        if self._failed is not None or self.conversations.withheld:
            return NO_BACKLOG
        end, folded = self._log.end(self.number).lsn, self.applier.lsn(self.origin)
        return self._behind.look(end, folded, self._clock.now())

    @property
    def alarm(self) -> str | None:
        if self._failed is not None:
            return f"partition {self.number} takes no writes: {self._failed}"
        return self.applier.alarm

    async def republish(self, origin: Origin, originals: Sequence[oplog.Op]) -> None:
        """Accept ops of that origin again under the own one, in this order (rule 7)."""
        appended: list[asyncio.Future[Record]] = []
        try:
            for original in originals:
                head = 0
                if original.seq:
                    conversation = await self.conversations.load(original.conversation)
                    head = conversation.heads.get(self.origin, 0)
                op = self.sequencer.republish(original, origin, head, self._clock.wall_ms())
                appended.append(self._appended(op))
        finally:
            results = await asyncio.gather(*appended, return_exceptions=True)
        for result in results:
            if isinstance(result, BaseException):
                raise result

    async def claim(self, claims: Sequence[Attested], seen_hlc: int) -> None:
        """Log what of these places is not known here (verified, of one conversation)."""
        wanted = [keys.client_key(self.number, claim.key) for claim in claims]
        stored = await self.kv.get_many(wanted)
        rows = [None if value is None else oplog.ClassRow.FromString(value) for value in stored]
        lower = unknown_places(claims, rows)
        if lower:
            # Only now: a head of before a rebuild could give a seq out twice.
            conversation = await self.conversations.load(claims[0].key.conversation)
            head = conversation.heads.get(self.origin, 0)
            op = self.sequencer.claim_op(lower, head, self._clock.wall_ms(), seen_hlc)
            await self.append(op)

    # ---------------------------------------------------------------------------- messages

    def is_prepared(self, lane: Names, floor: int) -> bool:
        """Whether lane and conversation are in memory (else ``prepare`` first)."""
        state = self.sequencer.lane(lane)
        loaded = state is not None and state.loaded and floor >= state.floor
        return loaded and self.conversations.get(lane[3]) is not None

    def submit(self, submission: Submission, done: Done) -> bool:
        """Without waiting when it ``is_prepared``; False when it is not."""
        key = submission.key
        conversation = self.conversations.get(key.conversation)
        if conversation is None or not self.is_prepared(key[:4], submission.floor):
            return False
        if self._failed is not None:
            done(Unavailable(self._refusal(), 500))
            return True
        head = conversation.heads.get(self.origin, 0)
        verdict = self.sequencer.message(submission, head, self._clock.wall_ms())
        if isinstance(verdict, Accept):
            self._put_message(key, verdict, done)
        elif isinstance(verdict, Joined):
            if verdict.pending.lsn:
                done(self._accepted(verdict.pending, joined=True))
            else:
                self._waiters.setdefault(key, []).append(done)
        elif isinstance(verdict, Known):
            task = asyncio.ensure_future(self._known(submission, done))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        elif isinstance(verdict, Want):
            done(verdict)
        elif isinstance(verdict, Conflict):
            done(Refused(Code.CID_CONFLICT, "this cid was used for other content"))
        return True

    def knows(self, key: ClientKey) -> bool:
        """Whether this cid is folded here, as far as its lane is in memory."""
        lane = self.sequencer.lane(key[:4])
        return lane is not None and key.cid in lane.known

    def _put_message(self, key: ClientKey, accept: Accept, done: Done) -> None:
        def durable(result: Record | Exception) -> None:
            outcome: Outcome
            if isinstance(result, Exception):
                outcome = result
            else:
                accept.pending.lsn = result.lsn
                outcome = self._accepted(accept.pending)
            done(outcome)
            for also in self._waiters.pop(key, ()):
                also(
                    outcome
                    if isinstance(result, Exception)
                    else self._accepted(accept.pending, joined=True)
                )

        self.put(accept.op, durable)

    def _accepted(self, pending: Pending, joined: bool = False) -> Accepted:
        """``joined`` answers as known: what that request carried along (claims) is not logged."""
        return Accepted(self.origin, pending.seq, pending.place, pending.lsn, known=joined)

    async def prepare(self, lane: Lane, floor: int) -> None:
        """Bring lane and conversation into memory."""
        await self.conversations.load(lane.conversation)
        begun = self.applier.begun
        state = self.sequencer.open_lane(lane, floor)
        if not state.loaded or floor < state.floor:
            # The second: a client went back to an older copy of its outbox. From here on whatever
            # is folded is noted from that floor on; what was folded before is read.
            state.lower_floor(floor)
            read_from = state.floor
            known = await self.known_cids(lane, read_from)
            if begun != self.applier.begun or self.conversations.get(lane.conversation) is None:
                return  # what was read may be of before a rebuild: the client asks again
            if state.floor < read_from:
                return  # another one went further back meanwhile, and reads from there
            state.known |= known
            state.loaded = True

    async def known_cids(self, lane: Lane, floor: int) -> set[int]:
        """Folded cids of the lane at or above floor. A class that only a claim has made (no copy
        yet) is not known: its message is still to come."""
        prefix = keys.lane(self.number, lane)
        start = prefix + keys.number(max(0, floor))
        end = keys.prefix_end(prefix)
        known: set[int] = set()
        while True:
            rows = await self.kv.scan(start, end, _LANE_SCAN)
            for key, value in rows:
                if oplog.ClassRow.FromString(value).copies:
                    known.add(keys.cid_of(key))
            if len(rows) < _LANE_SCAN:
                return known
            start = rows[-1][0] + b"\0"
            await asyncio.sleep(0)  # where the KV does not suspend: let the loop go in between

    async def _known(self, submission: Submission, done: Done) -> None:
        """Answer with what was accepted; a smaller attested place becomes a place op (rule 12)."""
        try:
            outcome = await self._judge_known(submission)
        except Exception as error:
            outcome = error
        done(outcome)

    async def _judge_known(self, submission: Submission) -> Outcome:
        begun = self.applier.begun
        stored = await self.kv.get(keys.client_key(self.number, submission.key))
        if stored is None or begun != self.applier.begun or self.conversations.withheld:
            # While a partition is folded again, a class does not have all of its copies.
            return Unavailable("the message is being applied; ask again", 20)
        row = oplog.ClassRow.FromString(stored)
        answer, lower = judge_known(row, submission, self.origin, self._above_seal)
        if isinstance(answer, Sealed):
            return Unavailable("the message is being published again; ask again", 200)
        if isinstance(answer, Conflict):
            return Refused(Code.CID_CONFLICT, "this cid was used for other content")
        if lower:
            conversation = await self.conversations.load(submission.key.conversation)
            head = conversation.heads.get(self.origin, 0)
            op = self.sequencer.place_op(submission, answer.place, head, self._clock.wall_ms())
            await self.append(op)
        if not answer.elsewhere:
            answer.lsn = self._log.end(self.number).lsn
        return answer

    def _above_seal(self, origin: Origin) -> bool:
        """Whether copies of this origin that are folded here may lie above its seal. They are about
        to be folded out, so nobody may be told that they are held (rule 7)."""
        seal = self.seal_of(origin, self.number)
        return seal is not None and self.applier.reach().get(origin, 0) > seal
