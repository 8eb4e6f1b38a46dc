"""One Kafka cluster as this project talks to it: single requests, each with one deadline.

Why not the library's own clients: its producer repeats what failed for as long as it lives (an
idempotent batch never expires) and reports a batch of unknown offset as a success, and its clients
wait for metadata without a bound. All of that hides what became of a request, which fencing must
know. So the connections, the wire format and the record batches are aiokafka's, and who repeats
what, and when a write counts, is decided here and above.

Requests of one lane share a connection to a broker, which answers them one by one: a fetch that
waits for news must not hold a write back. Leaders are looked up when needed, and again after an
error that says they have moved, or a broken connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import math
import ssl
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence, Set
from functools import partial
from typing import Any, NamedTuple, TypeVar

from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer.fetcher import READ_COMMITTED
from aiokafka.errors import (
    BrokerResponseError,
    ClusterAuthorizationFailedError,
    CorruptRecordException,
    IllegalSaslStateError,
    KafkaError,
    KafkaStorageError,
    LeaderNotAvailableError,
    NotLeaderForPartitionError,
    OffsetOutOfRangeError,
    SaslAuthenticationFailed,
    TopicAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
    UnknownTopicOrPartitionError,
    UnsupportedSaslMechanismError,
    for_code,
)
from aiokafka.protocol.admin import DeleteRecordsRequest, DeleteTopicsRequest
from aiokafka.protocol.fetch import FetchRequest
from aiokafka.protocol.metadata import MetadataRequest
from aiokafka.protocol.offset import OffsetRequest

from imcore.errors import Damaged, NotTrusted, OutcomeUnknown, Unavailable
from services.engines.kafka.batches import Fetched, decode
from services.engines.kafka.settings import KafkaSettings
from services.engines.renewed import Renewed

# Of a broker that is away it says the same several times a second; our errors say it once.
logging.getLogger("aiokafka").setLevel(logging.CRITICAL)

WRITE, READ, TAIL, ADMIN = "write", "read", "tail", "admin"
_RETRY_S = 0.1
_CLOSE_S = 1.0
# Without an answer for so long, other brokers are asked, and again after as long. A machine that
# hangs keeps its connections; its lead it loses once its session with the controller is over.
_DOUBT_S = 1.0
_NEXT_S = 2.0  # for metadata, which no broker has to look up; then the next one is asked
_MOVED = (
    LeaderNotAvailableError,
    NotLeaderForPartitionError,
    UnknownTopicOrPartitionError,
    KafkaStorageError,
)
_FORBIDDEN = (
    TopicAuthorizationFailedError,
    ClusterAuthorizationFailedError,
    TransactionalIdAuthorizationFailed,
)
_NO_LOGIN = (
    UnsupportedSaslMechanismError,
    IllegalSaslStateError,
    SaslAuthenticationFailed,
)
_EARLIEST, _LATEST = -2, -1
_T = TypeVar("_T")


class NoTopic(Unavailable):
    """There is no such topic (yet)."""


class Gone(LookupError):
    """The offset lies outside what the topic still, or already, holds."""


class At(NamedTuple):
    topic: str
    partition: int


async def dial(host: str, port: int, **options: Any) -> AIOKafkaConnection:
    """As aiokafka makes one. But who gives up while it is made leaves nothing behind: aiokafka only
    begins to say TLS's goodbye then, and nobody waits until the broker has said its own."""
    connection = AIOKafkaConnection(host, port, **options)
    try:
        await connection.connect()
    except BaseException:
        protocol = connection._protocol
        if protocol is not None and protocol._transport is not None:
            # A TLS transport that was closed twice has nothing left to abort (Python 3.11.2).
            with contextlib.suppress(AttributeError):
                protocol._transport.abort()
        raise
    return connection


class Cluster:
    """For use from one event loop. ``name`` says in errors whose Kafka it is."""

    def __init__(self, settings: KafkaSettings, name: str) -> None:
        self.settings = settings
        self.name = name
        self._tls = Renewed(settings.tls_files, settings.ssl_context)
        self._nodes: dict[int, tuple[str, int]] = {}
        self._leaders: dict[At, int] = {}
        self._controller = -1
        self._connections: dict[tuple[int, str], AIOKafkaConnection] = {}
        self._connecting: dict[tuple[int, str], asyncio.Lock] = {}
        self._looking = asyncio.Lock()
        self._doubted_at = -math.inf  # when it was last looked who leads in place of a silent one
        self._failed_at: dict[tuple[str, int], float] = {}  # who did not answer since, and when
        self._closed = False
        self._closing: dict[asyncio.Future[None], asyncio.WriteTransport] = {}

    def __str__(self) -> str:
        return f"{self.name}'s Kafka at {', '.join(self.settings.brokers)}"

    async def close(self) -> None:
        """Waits for the goodbyes of TLS; a broker that does not say its own in time is cut off."""
        for connection in self._connections.values():
            self._close(connection)
        self._connections.clear()
        self._closed = True
        if self._closing:
            _, silent = await asyncio.wait(self._closing, timeout=_CLOSE_S)
            for closed in silent:
                self._closing[closed].abort()
            if silent:
                await asyncio.wait(silent, timeout=_CLOSE_S)

    # --------------------------------------------------------------------------- requests

    async def call(
        self,
        node: int,
        request: Any,
        lane: str,
        write: bool = False,
        wait_s: float = 0.0,
        led: Collection[At] = (),
    ) -> Any:
        """``wait_s``: how long the broker may wait by itself. ``led``: what it is asked as the
        leader of; once others lead all of that, its answer is not waited for. Raises Unavailable;
        when ``write``, OutcomeUnknown once the request may have been sent."""
        deadline_s = self.settings.deadline_s + wait_s
        sent = False
        try:
            async with asyncio.timeout(deadline_s):
                connection = await self._connected(node, lane)
                sent = True
                with self._doubting(node, lane, wait_s, led):
                    reply = await connection.send(request)
        except (KafkaError, TimeoutError, OSError) as error:
            self._drop(node, lane)
            sentence = f"{self} does not answer: {_said(error)}"
            raise (OutcomeUnknown if sent and write else Unavailable)(sentence) from error
        except Unavailable:  # it could not be reached: another one may lead by now
            self._drop(node, lane)
            raise
        except asyncio.CancelledError:
            self._drop(node, lane)  # the answer would be taken for the next one's
            raise
        self._failed_at.pop(self._place_of(node), None)
        return reply

    @contextlib.contextmanager
    def _doubting(self, node: int, lane: str, wait_s: float, led: Collection[At]) -> Iterator[None]:
        """A request that lasts is ended, by dropping its connection, when others lead by now. Of
        one broker nobody can take the lead: where it is slow, to ask it more makes it slower."""
        if not led or not self._has_others:
            yield
            return
        looking: list[asyncio.Task[None]] = []

        async def look() -> None:
            while True:
                self._failed(self._place_of(node))  # so it is the last to be asked who leads
                with contextlib.suppress(Unavailable):
                    await self._look_for_all({at.topic for at in led})
                if all(self._leaders.get(at, node) != node for at in led):
                    self._drop(node, lane)
                await asyncio.sleep(_DOUBT_S / 2)

        loop = asyncio.get_running_loop()
        timer = loop.call_later(wait_s + _DOUBT_S, lambda: looking.append(loop.create_task(look())))
        try:
            yield
        finally:
            timer.cancel()
            for task in looking:
                task.cancel()

    @property
    def _has_others(self) -> bool:
        return len(self._nodes) > 1

    async def _look_for_all(self, topics: set[str]) -> None:
        """Unless that was done just now: requests to one broker are doubted all at once. Raises
        Unavailable."""
        now = asyncio.get_running_loop().time()
        if now - self._doubted_at >= _DOUBT_S:
            self._doubted_at = now
            await self.look(sorted(topics.union(at.topic for at in self._leaders)))

    async def ask(self, request: Any, controller: bool = False) -> Any:
        """Of any broker, or of the controller; of the next one while one cannot be reached and
        there is time. Not for what must not be done twice."""
        if not self._nodes or (controller and self._controller not in self._nodes):
            await self.look([])
        if not self._nodes:
            raise Unavailable(f"{self} names no brokers")
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.deadline_s
        asked: set[int] = set()
        while True:
            node = self._controller if controller else self._likeliest(self._nodes.keys() - asked)
            try:
                return await self.call(node, request, ADMIN)
            except NotTrusted:
                raise
            except Unavailable:
                asked.add(node)
                await self.look([])
                left = {self._controller} if controller else self._nodes.keys()
                if left <= asked or loop.time() >= deadline:
                    raise

    def _likeliest(self, nodes: Set[int]) -> int:
        """To answer: one that did not fail, or long ago; rather one that is connected."""

        def hope(node: int) -> tuple[float, bool, int]:
            connection = self._connections.get((node, ADMIN))
            away = connection is None or not connection.connected()
            return self._failed_at.get(self._place_of(node), 0.0), away, node

        return min(nodes, key=hope)

    def _place_of(self, node: int) -> tuple[str, int]:
        return self._nodes.get(node, ("", 0))

    def _failed(self, place: tuple[str, int]) -> None:
        self._failed_at[place] = asyncio.get_running_loop().time()

    def check(self, code: int, what: str, write: bool = False) -> None:
        """Raise what an error code of a response means."""
        if not code:
            return
        raise self.translated(for_code(code)(), what, write)

    def translated(self, error: KafkaError, what: str, write: bool = False) -> Exception:
        said = _said(error)
        if isinstance(error, _FORBIDDEN):
            return NotTrusted(
                f"{self} does not let this certificate or user {what}: {said}; grant it with an ACL"
            )
        if isinstance(error, UnknownTopicOrPartitionError):
            return NoTopic(f"{self} has no such topic or partition: {what}")
        if isinstance(error, OffsetOutOfRangeError):
            return Gone(what)
        if isinstance(error, CorruptRecordException):
            return Damaged(f"{self}: {what}: {said}")
        return (OutcomeUnknown if write else Unavailable)(f"{self} cannot {what}: {said}")

    # ------------------------------------------------------------------------- connections

    async def _connected(self, node: int, lane: str) -> AIOKafkaConnection:
        key = (node, lane)
        async with self._connecting.setdefault(key, asyncio.Lock()):
            connection = self._connections.get(key)
            if connection is not None and connection.connected():
                return connection
            if node not in self._nodes:
                raise Unavailable(f"{self}: broker {node} is not known")
            return self._keep(key, await self._connect(*self._nodes[node]))

    def _keep(self, key: tuple[int, str], new: AIOKafkaConnection) -> AIOKafkaConnection:
        """The connection that carries the lane: while this one was being made, a look may have
        found one already, or everything may have been closed. Nobody else would close it then."""
        held = self._connections.get(key)
        if self._closed or (held is not None and held.connected()):
            self._close(new)
        if self._closed:
            raise Unavailable(f"the connections to {self} are closed")
        if held is not None and held.connected():
            return held
        self._connections[key] = new
        return new

    async def _connect(self, host: str, port: int) -> AIOKafkaConnection:
        if self._closed:
            raise Unavailable(f"the connections to {self} are closed")
        settings = self.settings
        self._tls.look()
        secure = "SSL" if self._tls.value is not None else "PLAINTEXT"
        try:
            return await dial(
                host,
                port,
                client_id="imctl",
                request_timeout_ms=int(settings.deadline_s * 1000) + 1000,
                ssl_context=self._tls.value,
                security_protocol=f"SASL_{secure}" if settings.username else secure,
                sasl_mechanism="SCRAM-SHA-512" if settings.username else None,
                sasl_plain_username=settings.username or None,
                sasl_plain_password=settings.password or None,
            )
        except (OSError, KafkaError) as error:
            self._failed((host, port))
            raise await self._refused(host, port, error) from error
        except asyncio.CancelledError:  # its caller's deadline, as a rule
            self._failed((host, port))
            raise

    async def _refused(self, host: str, port: int, error: Exception) -> Unavailable:
        """With TLS 1.3 a broker refuses a certificate only after the handshake, and aiokafka keeps
        to itself what it said: ask once more."""
        if isinstance(error, _NO_LOGIN):
            return NotTrusted(
                f"{self.name}'s Kafka at {host}:{port} does not let the user "
                f"{self.settings.username} in: {_said(error)}; check username and password_file"
            )
        said = error if _is_trust(error) else await self._handshake(host, port)
        if said is not None:
            return NotTrusted(
                f"{self.name}'s Kafka at {host}:{port} and this IDC do not accept each other's "
                f"certificate: {_said(said)}; check ca_file, cert_file and key_file"
            )
        return Unavailable(
            f"{self.name}'s Kafka at {host}:{port} cannot be reached: {_said(error)}"
        )

    async def _handshake(self, host: str, port: int) -> Exception | None:
        if self._tls.value is None:
            return None
        try:
            async with asyncio.timeout(1.0):
                reader, writer = await asyncio.open_connection(
                    host, port, ssl=self._tls.value, server_hostname=host
                )
                try:
                    await reader.read(1)
                finally:
                    writer.transport.abort()
        except (ssl.SSLError, ssl.CertificateError) as error:
            return error
        except (OSError, TimeoutError):
            pass
        return None

    def _close(self, connection: AIOKafkaConnection) -> None:
        writer = connection._writer  # which it forgets when it is closed
        closed = connection.close()
        if writer is None or closed.done():
            return
        if self._closed:
            writer.transport.abort()  # nobody waits for a goodbye any more
            return
        self._closing[closed] = writer.transport
        closed.add_done_callback(self._closing.pop)

    def _drop(self, node: int, lane: str) -> None:
        """Whatever was on its way there has failed; who leads may have changed."""
        connection = self._connections.pop((node, lane), None)
        if connection is not None:
            self._close(connection)
            self._failed(self._place_of(node))
        self._leaders = {at: leader for at, leader in self._leaders.items() if leader != node}

    # ---------------------------------------------------------------------------- metadata

    async def look(self, topics: Sequence[str] | None) -> set[str]:
        """Learn the brokers, and the leaders of these topics (None: all). Returns those that
        exist. Raises Unavailable."""
        request = MetadataRequest(None if topics is None else list(topics), False)
        deadline = asyncio.get_running_loop().time() + self.settings.deadline_s
        await self._turn_to_look(deadline)
        try:
            reply = await self._metadata(request, deadline)
        finally:
            self._looking.release()
        self._nodes = {node: (host, port) for node, host, port, *_ in reply.brokers}
        self._controller = reply.controller_id
        found = set()
        for code, topic, _, partitions in reply.topics:
            if code == 0 or partitions:
                found.add(topic)
            for _, partition, leader, *_ in partitions:
                if leader >= 0:
                    self._leaders[At(topic, partition)] = leader
                else:
                    self._leaders.pop(At(topic, partition), None)
        return found

    async def places(self) -> dict[int, tuple[str, int]]:
        """Where clients are sent to, by broker. Raises Unavailable."""
        await self.look([])
        return dict(self._nodes)

    async def shapes(self, topics: Sequence[str]) -> dict[str, tuple[int, int]]:
        """Partitions and replicas of those that exist. Raises Unavailable."""
        if not topics:
            return {}
        deadline = asyncio.get_running_loop().time() + self.settings.deadline_s
        reply = await self._metadata(MetadataRequest(list(topics), False), deadline)
        found: dict[str, tuple[int, int]] = {}
        for code, topic, _, partitions in reply.topics:
            if partitions:
                found[topic] = (len(partitions), len(partitions[0][3]))
            elif for_code(code) in _FORBIDDEN:
                self.check(code, f"describe the topic {topic}")
        return found

    async def _turn_to_look(self, deadline: float) -> None:
        """Takes ``_looking``. Raises Unavailable."""
        try:
            async with asyncio.timeout_at(deadline):
                await self._looking.acquire()
        except TimeoutError as error:
            raise Unavailable(f"{self} does not say in time who leads") from error

    async def _metadata(self, request: MetadataRequest, deadline: float) -> Any:
        """From a broker that is connected and answers soon; else from whichever lets itself be
        reached first, those last that did not answer the last time. All of them together have
        until the deadline, each what the ones before it have left of its share."""
        loop = asyncio.get_running_loop()
        for node, lane in list(self._connections):
            failed = self._place_of(node) in self._failed_at
            if lane == ADMIN and not (failed and self._has_others):
                wait_s = _NEXT_S if self._has_others else math.inf
                with contextlib.suppress(Unavailable, TimeoutError):
                    async with asyncio.timeout_at(min(loop.time() + wait_s, deadline)):
                        return await self.call(node, request, ADMIN)
        why: Exception = Unavailable(f"{self} names no brokers")
        places = [*self._nodes.values(), *(_place(broker) for broker in self.settings.brokers)]
        likeliest = sorted(dict.fromkeys(places), key=lambda place: self._failed_at.get(place, 0.0))
        for tried, (host, port) in enumerate(likeliest):
            share_s = (deadline - loop.time()) / (len(likeliest) - tried)
            try:
                async with asyncio.timeout(share_s):
                    connection = await self._connect(host, port)
                    try:
                        reply = await connection.send(request)
                    except BaseException:
                        self._close(connection)
                        self._failed((host, port))
                        raise
            except NotTrusted as error:
                why = error
                break
            except (Unavailable, KafkaError, TimeoutError, OSError) as error:
                why = error
                continue
            self._failed_at.pop((host, port), None)
            self._adopt(host, port, reply, connection)
            return reply
        if isinstance(why, Unavailable):
            raise why
        raise Unavailable(f"{self} cannot be reached: {_said(why)}") from why

    def _adopt(self, host: str, port: int, reply: Any, connection: AIOKafkaConnection) -> None:
        """Keep the connection when the broker is known by that very address."""
        for node, its_host, its_port, *_ in reply.brokers:
            if (its_host, its_port) == (host, port):
                self._keep((node, ADMIN), connection)
                return
        self._close(connection)

    async def leader(self, at: At) -> int:
        """Raises NoTopic, Unavailable."""
        found = self._leaders.get(at)
        if found is None:
            exists = at.topic in await self.look([at.topic])
            found = self._leaders.get(at)
            if not exists:
                raise NoTopic(f"{self} has no topic {at.topic}")
            if found is None:
                raise Unavailable(f"{self}: partition {at.partition} of {at.topic} has no leader")
        return found

    def led(self, at: At) -> bool:
        """Whether somebody is known to lead the partition."""
        return at in self._leaders

    def moved(self, at: At, code: int) -> bool:
        """Whether the error says that another broker leads; then it is looked up again."""
        if for_code(code) in _MOVED:
            self._leaders.pop(at, None)
            return True
        return False

    # ------------------------------------------------------------------------------- reads

    async def fetch(
        self, node: int, wanted: Sequence[tuple[At, int, int]], lane: str, wait_ms: int = 0
    ) -> dict[At, Fetched | Exception]:
        """(partition, offset, bytes) each; of committed transactions only. Waits up to
        ``wait_ms`` when there is nothing. Raises Unavailable."""
        topics: dict[str, list[tuple[int, int, int]]] = {}
        for at, offset, size in wanted:
            topics.setdefault(at.topic, []).append((at.partition, offset, size))
        total = max(size for _, _, size in wanted)
        request = FetchRequest(wait_ms, 1, total, READ_COMMITTED, list(topics.items()))
        led = [at for at, _, _ in wanted]
        reply = await self.call(node, request, lane, wait_s=wait_ms / 1000, led=led)
        offsets = {at: offset for at, offset, _ in wanted}
        found: dict[At, Fetched | Exception] = {}
        for topic, partitions in reply.topics:
            for partition, code, _, stable, *rest in partitions:
                at = At(topic, partition)
                what = f"read {topic} partition {partition} from offset {offsets[at]}"
                if code:
                    self.moved(at, code)
                    found[at] = self.translated(for_code(code)(), what)
                    continue
                try:
                    found[at] = decode(
                        topic, partition, offsets[at], rest[-1], rest[1], stable, rest[0]
                    )
                except KafkaError as error:
                    found[at] = self.translated(error, what)
        return found

    async def fetch_one(self, at: At, offset: int, size: int) -> Fetched:
        """Raises Gone, NoTopic, Unavailable, Damaged."""

        async def once(node: int) -> Fetched:
            found = (await self.fetch(node, [(at, offset, size)], READ)).get(at)
            if isinstance(found, Fetched):
                return found
            raise found or Unavailable(f"{self} leaves {at.topic} out of its answer")

        return await self._at_leader(at, once)

    async def bounds(self, at: At) -> tuple[int, int]:
        """The lowest offset stored, and the one behind the last that is committed. Raises NoTopic,
        Unavailable."""
        start = await self._at_leader(at, partial(self._offset, at, _EARLIEST))
        return start, await self._at_leader(at, partial(self._offset, at, _LATEST))

    async def _offset(self, at: At, when: int, node: int) -> int:
        topics = [(at.topic, [(at.partition, when)])]
        reply = await self.call(node, OffsetRequest(-1, READ_COMMITTED, topics), READ, led=[at])
        for _, partitions in reply.topics:
            for _, code, *rest in partitions:
                self.moved(at, code)
                self.check(code, f"tell the bounds of {at.topic} partition {at.partition}")
                return int(rest[-1])
        raise Unavailable(f"{self} does not tell the bounds of {at.topic}")

    async def delete_topic(self, topic: str) -> None:
        """Never done to what is in use. Raises Unavailable."""
        wait_ms = int(self.settings.deadline_s * 1000)
        reply = await self.ask(DeleteTopicsRequest([topic], wait_ms), controller=True)
        for name, code in reply.topic_error_codes:
            self.check(code, f"delete {name}")

    async def delete_below(self, at: At, offset: int) -> None:
        """Raises NoTopic, Unavailable."""
        wait_ms = int(self.settings.deadline_s * 1000)
        request = DeleteRecordsRequest([(at.topic, [(at.partition, offset)])], wait_ms)

        async def once(node: int) -> None:
            reply = await self.call(node, request, ADMIN)
            for _, partitions, *_ in reply.topics:
                for _, _, code, *_ in partitions:
                    self.moved(at, code)
                    self.check(code, f"delete from {at.topic} partition {at.partition}")  # noqa: S608 - no SQL

        await self._at_leader(at, once)

    async def _at_leader(self, at: At, attempt: Callable[[int], Awaitable[_T]]) -> _T:
        """What may be repeated, until whoever leads the partition has done it."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self.settings.deadline_s
        while True:
            try:
                return await attempt(await self.leader(at))
            except (NoTopic, NotTrusted):
                raise
            except Unavailable:
                if at in self._leaders or loop.time() >= deadline:
                    raise
            await asyncio.sleep(_RETRY_S)


def _place(broker: str) -> tuple[str, int]:
    host, _, port = broker.rpartition(":")
    return host.strip("[]"), int(port)


def _is_trust(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, ssl.SSLCertVerificationError | ssl.SSLError):
            return True
        error = error.__cause__
    return False


def _said(error: BaseException) -> str:
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, BrokerResponseError):
        return f"{type(error).__name__} ({error.description})"
    return str(error) or type(error).__name__
