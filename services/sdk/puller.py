"""Fetches what this device has missed: sync after connecting, gaps, idle pulls, other origins.

A conversation is pulled by one task at a time, those that wait together in one request, and at most
``pulls_max`` requests at once; whatever finds out that something is missing only names the
conversation. What is asked of other IDCs goes beside that and takes no worker's place: an IDC that
does not answer must not stop the pulls from this one.
"""

from __future__ import annotations

import asyncio
import logging
import random
from collections.abc import Callable, Coroutine, Iterable
from functools import partial
from itertools import islice

from imcore.convert import fill_positions, vector_of
from imcore.errors import Code
from imcore.proto import client_pb2 as pb
from imcore.words import Vector
from services.sdk.core.view import View
from services.sdk.core.waits import again_s
from services.sdk.options import Options
from services.sdk.session import Session, SessionLost
from services.sdk.side import SideLinks

log = logging.getLogger("im.sdk")

ANSWER_S = 5.0
# The IDC gives a read up first, and says so; a second for the way there and back.
DEADLINE_MS = 4_000
_AGAIN = {Code.UNAVAILABLE, Code.OVERLOADED, Code.DEADLINE, Code.INTERNAL}
_SIDE_ROUNDS = 5  # of asking a named origin; after that the own IDC's idle pull finds it


class Puller:
    def __init__(
        self,
        options: Options,
        views: dict[str, View],
        view: Callable[[str], View],
        side: SideLinks,
        on_news: Callable[[str], None],
        rng: random.Random,
    ) -> None:
        self._rng = rng
        self._options = options
        self._views = views
        self._view = view
        self._side = side
        self._on_news = on_news
        self._session: Session | None = None
        self._syncs: set[Session] = set()  # that go on
        self._tokens: dict[str, bytes] = {}  # of the last sync, by origin
        self._queue: dict[str, None] = {}
        self._workers: set[asyncio.Task[None]] = set()
        self._asides: set[asyncio.Task[None]] = set()
        self._retries: dict[str, asyncio.TimerHandle] = {}  # pulls that were put off
        self._failed: dict[str, int] = {}  # pulls of a conversation, in a row
        self._signals: dict[str, tuple[Vector, int]] = {}  # named heads, rounds so far
        self._signal_timer: asyncio.TimerHandle | None = None
        self._idle = asyncio.Event()
        self._suspicious: dict[str, float] = {}  # since when a view has places the IDC may lack

    def close(self) -> None:
        self._session = None
        if self._signal_timer is not None:
            self._signal_timer.cancel()
        for task in self._workers | self._asides:
            task.cancel()
        self._forget()

    def connected(self, session: Session) -> None:
        self._session = session
        self._suspicious.clear()

    def disconnected(self) -> None:
        self._session = None
        self._forget()

    def _forget(self) -> None:
        """The next connection's sync finds out anew what is missing."""
        self._queue.clear()
        for timer in self._retries.values():
            timer.cancel()
        self._retries.clear()
        self._failed.clear()
        self._look_idle()

    # ------------------------------------------------------------------------------ sync

    async def sync(self, session: Session) -> None:
        """Learn what the IDC has of every conversation that changed since the last sync with it,
        and pull what is missing here. Raises SessionLost."""
        self._syncs.add(session)
        try:
            await self._sync(session)
        finally:
            self._syncs.discard(session)

    def syncs(self, session: Session) -> bool:
        """Whether that goes on: one at a time will do, however long it takes."""
        return session in self._syncs

    async def _sync(self, session: Session) -> None:
        origin = str(session.origin)
        since = self._tokens.get(origin, b"")
        page = b""
        failed = 0  # in a row
        while True:
            request = pb.Request(
                sync=pb.Sync(since=since, limit=self._options.pull_limit, page=page)
            )
            response = await self._ask(session, request)
            if response.HasField("error"):
                failed += 1
                wait_s = again_s(response.error, self._rng, failed)
                await asyncio.wait([session.ended], timeout=wait_s)
                if response.error.code not in _AGAIN:
                    log.warning("sync was refused: %s", response.error.message)
                    return
                continue
            failed = 0
            ok = response.sync_ok
            self.heads(ok.conversations)
            self._left(ok.left)
            if not ok.next_page or ok.next_page == page:
                break
            page = ok.next_page
        self._tokens[origin] = ok.token
        for conversation, view in self._views.items():
            if view.received.behind():
                self.want(conversation)

    def _left(self, groups: Iterable[pb.ConversationHeads]) -> None:
        """Of those that were never shown here nobody need be told."""
        for item in groups:
            view = self._views.get(item.conversation)
            if view is not None and not view.received.covers(vector_of(item.heads)):
                self.want(item.conversation)

    async def _ask(self, session: Session, request: pb.Request) -> pb.Response:
        """One that is not answered in time is as good as answered so. Raises SessionLost."""
        request.deadline_ms = DEADLINE_MS
        try:
            return await session.ask(request, ANSWER_S)
        except TimeoutError:
            error = pb.Error(code=Code.DEADLINE, message="not answered in time")
            return pb.Response(error=error)

    def heads(self, behind: Iterable[pb.ConversationHeads]) -> None:
        """The IDC says what it has (or what this session should have)."""
        for item in behind:
            view, heads = self._view(item.conversation), vector_of(item.heads)
            view.heads(heads, item.stable)
            if view.received.behind() or view.ahead(heads):
                self.want(item.conversation)

    def heads_within(self, behind: Iterable[pb.ConversationHeads], within_ms: int) -> None:
        """The same of huge groups, of which all members are told at once: at some time within
        that."""
        for item in behind:
            self._view(item.conversation).heads(vector_of(item.heads), item.stable)
            if item.conversation not in self._retries:
                self._put_off(item.conversation, self._rng.random() * within_ms / 1000)

    # ----------------------------------------------------------------------------- pulls

    def want(self, conversation: str) -> None:
        """Something of this conversation is missing."""
        if self._session is None:
            return
        if conversation in self._failed and conversation in self._retries:
            return  # it is asked for again in its turn
        self._queue[conversation] = None
        self._start()

    def _start(self) -> None:
        session = self._session
        if session is None or session.ended.done() or not self._queue:
            return
        if len(self._workers) < self._options.pulls_max:
            self._spawn(self._workers, self._work())

    def _spawn(self, tasks: set[asyncio.Task[None]], work: Coroutine[None, None, None]) -> None:
        task: asyncio.Task[None] = asyncio.get_running_loop().create_task(work)
        tasks.add(task)
        task.add_done_callback(self._done)

    def _done(self, task: asyncio.Task[None]) -> None:
        self._workers.discard(task)
        self._asides.discard(task)
        if not task.cancelled() and task.exception() is not None:
            log.error("a pull failed: %s", task.exception())
        self._start()  # a worker that failed left what it had not come to
        self._look_idle()

    @property
    def _busy(self) -> bool:
        return bool(self._workers or self._asides or self._queue or self._retries)

    def _look_idle(self) -> None:
        if not self._busy:
            self._idle.set()

    async def settled(self) -> None:
        """Until nothing is being pulled, nor is to be."""
        while self._busy:
            self._idle.clear()
            await self._idle.wait()

    async def _work(self) -> None:
        while self._queue and (session := self._session) is not None:
            conversations = list(islice(self._queue, max(1, session.pulls_max)))
            for conversation in conversations:
                del self._queue[conversation]
            try:
                await self._pull(session, [self._view(name) for name in conversations])
            except SessionLost:
                return  # the next connection's sync finds them again

    async def _pull(self, session: Session, views: list[View]) -> None:
        while views:
            before = [dict(view.received.prefix) for view in views]
            answers = await self._answers(session, views)
            # What an answer has no room for is asked for again, as is one that has more.
            again = views[len(answers) :]
            refused: list[tuple[View, pb.Error]] = []
            for view, had, answer in zip(views, before, answers, strict=False):
                if answer.HasField("error"):
                    refused.append((view, answer.error))
                elif self._pulled(view, answer.pull_ok) and view.received.prefix != had:
                    again.append(view)
            self._refused(refused)
            views = again

    async def _answers(self, session: Session, views: list[View]) -> list[pb.Response]:
        """Of the first ones, at least of one."""
        if len(views) > 1 and session.pulls_max:
            request = pb.Request()
            for view in views:
                self._fill(request.pulls.pulls.add(), view)
            response = await self._ask(session, request)
            if answers := response.pulls_ok.answers:
                return list(answers)
            if response.error.code in _AGAIN:
                return [response] * len(views)
            session.pulls_max = 0  # a gateway may know of them before the core behind it
        return [await self._ask(session, self._request(views[0]))]

    def _pulled(self, view: View, ok: pb.PullOk) -> bool:
        """Whether there is more."""
        self._failed.pop(view.conversation, None)
        if ok.left:
            view.left(ok.entries)
            self._signals.pop(view.conversation, None)
            return False
        view.ends(ok.suspended)
        view.entries(ok.entries, True)
        view.heads(vector_of(ok.heads), ok.stable)
        self._on_news(view.conversation)
        return ok.more

    def _request(self, view: View) -> pb.Request:
        request = pb.Request()
        self._fill(request.pull, view)
        return request

    def _fill(self, pull: pb.Pull, view: View) -> None:
        pull.conversation = view.conversation
        fill_positions(pull.have, view.received.prefix)
        pull.limit = self._options.pull_limit

    def _refused(self, refused: list[tuple[View, pb.Error]]) -> None:
        """By one answer. What may be asked for again is, together, as one request."""
        again = [(view, error) for view, error in refused if error.code in _AGAIN]
        for view, error in refused:
            if error.code not in _AGAIN:
                self._failed.pop(view.conversation, None)
                log.info("%s cannot be pulled: %s", view.conversation, error.message)
                view.received.expected.clear()
        if again:
            failed = 1 + max(self._failed.get(view.conversation, 0) for view, _ in again)
            after_s = again_s(again[0][1], self._rng, failed)
            for view, _ in again:
                self._failed[view.conversation] = failed
                self._put_off(view.conversation, after_s)

    def _put_off(self, conversation: str, after_s: float) -> None:
        if (old := self._retries.get(conversation)) is not None:
            old.cancel()
        self._retries[conversation] = asyncio.get_running_loop().call_later(
            after_s, self._retry, conversation
        )

    def _retry(self, conversation: str) -> None:
        self._retries.pop(conversation, None)
        self.want(conversation)
        self._look_idle()

    # --------------------------------------------------------------------------- signals

    def signal(self, signal: pb.Signal) -> None:
        """Another origin has something; the own IDC gets ``signal_wait_ms`` to deliver it."""
        heads = vector_of(signal.heads)
        view = self._view(signal.conversation)
        if view.received.covers(heads):
            return
        known, _ = self._signals.get(signal.conversation, ({}, 0))
        for origin, seq in heads.items():
            known[origin] = max(seq, known.get(origin, 0))
        self._signals[signal.conversation] = (known, 0)
        self._look_later(self._options.signal_wait_ms)

    def _look_later(self, after_ms: int) -> None:
        if self._signal_timer is None:
            self._signal_timer = asyncio.get_running_loop().call_later(after_ms / 1000, self._look)

    def _look(self) -> None:
        self._signal_timer = None
        by_idc: dict[str, list[str]] = {}
        for conversation, (heads, rounds) in list(self._signals.items()):
            view = self._view(conversation)
            missing = [o for o, seq in heads.items() if not view.received.covers({o: seq})]
            if not missing or rounds >= _SIDE_ROUNDS:
                del self._signals[conversation]
                continue
            self._signals[conversation] = (heads, rounds + 1)
            for idc in sorted({origin.idc for origin in missing}):
                by_idc.setdefault(idc, []).append(conversation)
        own = self._session.origin.idc if self._session is not None else ""
        for idc, conversations in by_idc.items():
            if idc == own:
                for conversation in conversations:
                    self.want(conversation)
            else:
                self._spawn(self._asides, self._pull_aside(idc, conversations))
        if self._signals:
            self._look_later(1_000)

    async def _pull_aside(self, idc: str, conversations: list[str]) -> None:
        """From a gateway of the named origin's IDC, beside the own connection."""
        try:
            session = await self._side.get(idc)
            if session is None:
                return
            views = list(map(self._view, conversations))
            while views:
                asked = views[: max(1, session.pulls_max)]
                answers = await self._answers(session, asked)
                views = views[len(answers) :]
                for view, answer in zip(asked, answers, strict=False):
                    if answer.error.code == Code.DEADLINE:
                        session.close()  # no heartbeats say whether this one lives
                        return
                    if answer.HasField("error"):
                        continue
                    if view.entries(answer.pull_ok.entries, False) and answer.pull_ok.more:
                        views.append(view)
                    self._on_news(view.conversation)
        except SessionLost as error:
            log.info("%s cannot be asked directly: %s", idc, error)

    # ---------------------------------------------------------------------------- claims

    def claim(self, session: Session, now: float) -> None:
        """Tell the IDC of places that it still does not know though it has had the time to catch
        up: the IDC that gave them out may be gone, and this device the only one that knows."""
        for conversation, view in self._views.items():
            if not view.suspicious:
                self._suspicious.pop(conversation, None)
                continue
            since = self._suspicious.setdefault(conversation, now)
            if now < since + self._options.claim_after_ms / 1000 or view.received.behind():
                continue
            self._suspicious[conversation] = now
            if claims := view.claims():
                request = pb.Request(claim=pb.Claim(conversation=conversation, claims=claims))
                session.call(request, partial(self._claimed, session, view, claims))

    def _claimed(
        self,
        session: Session,
        view: View,
        claims: list[pb.Attested],
        response: pb.Response | None,
    ) -> None:
        if response is not None and not response.HasField("error") and session is self._session:
            view.claimed(claims)

    # --------------------------------------------------------------------------- history

    async def history(self, session: Session, conversation: str, limit: int) -> int:
        """Show up to ``limit`` messages before the first one shown. Raises SessionLost, and
        TimeoutError."""
        view = self._view(conversation)
        request = pb.Request(history=pb.History(conversation=conversation, limit=limit))
        if view.order:
            place = view.order[0][0]
            request.history.before.hlc = place.hlc
            request.history.before.origin.idc = place.origin.idc
            request.history.before.origin.incarnation = place.origin.incarnation
            request.history.before.seq = place.seq
        response = await self._ask(session, request)
        if response.HasField("error"):
            if response.error.code == Code.DEADLINE:
                raise TimeoutError
            return 0
        before = len(view.order)
        view.entries(response.pull_ok.entries, True, track=False)
        return len(view.order) - before
