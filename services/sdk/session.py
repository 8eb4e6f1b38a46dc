"""One connection to a gateway: requests with their answers, events, and how it ended."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from google.protobuf.message import DecodeError

from imcore import frame
from imcore.convert import origin_of
from imcore.packing import unpack
from imcore.proto import client_pb2 as pb
from imcore.runtime import Clock
from services.sdk.core.reconnect import Lost
from services.sdk.core.seen import Seen
from services.sdk.errors import AuthError
from services.sdk.ipconf import Gateway
from services.sdk.transport import Dialer, DialFailed, Wire

OnAnswer = Callable[[pb.Response | None], None]  # None: the connection is lost
OnEvent = Callable[["Session", pb.Event], None]


class SessionLost(Exception):
    """The connection ended (or was never made): ``lost`` says how."""

    def __init__(self, lost: Lost) -> None:
        super().__init__(lost.reason)
        self.lost = lost


class Session:
    def __init__(self, gateway: Gateway, seen: Seen, clock: Clock, on_event: OnEvent) -> None:
        self.gateway = gateway
        self.origin = origin_of(pb.Origin())
        self.ok = pb.ConnectOk()
        self.pulls_max = 0  # of one request
        self.ended: asyncio.Future[Lost] = asyncio.get_running_loop().create_future()
        self._seen = seen
        self._clock = clock
        self._on_event = on_event
        self._wire: Wire | None = None
        self._answers: dict[int, OnAnswer] = {}
        self._next_id = 0
        self._since = 0.0  # when it was fully connected; 0: not yet
        self.traffic_at = clock.now()  # when something was sent or came
        self.epoch = 0  # the connection epoch that it was opened with
        self.took_s = 0.0  # the slower of its dial and its sign-in
        self.network = ("", "")  # that it was dialled in, where anybody asks

    @property
    def polling(self) -> bool:
        return self._wire is not None and self._wire.polling

    @property
    def quic(self) -> bool:
        return self._wire is not None and self._wire.quic

    def changed_network(self) -> None:
        if self._wire is not None:
            self._wire.changed_network()

    # --------------------------------------------------------------------------- opening

    async def dial(self, dialer: Dialer, timeout_s: float) -> None:
        """Raises SessionLost."""
        gateway, began = self.gateway, self._clock.now()
        try:
            self._wire = await dialer.dial(
                gateway.host, gateway.port, timeout_s, self._frame, self._closed
            )
        except DialFailed as error:
            raise SessionLost(Lost(error.reason, 0, error.retry_after_ms)) from error
        if self.ended.done():  # its last word came with its first
            self._wire.close()
        self.took_s = self._clock.now() - began

    async def connect(self, connect: pb.Connect, timeout_s: float) -> pb.ConnectOk:
        """Raises SessionLost, AuthError."""
        began = self._clock.now()
        response = await self.ask(pb.Request(connect=connect), timeout_s)
        if response.HasField("error"):
            error = response.error
            self.close()
            if error.code == "unauthenticated":
                raise AuthError(error.message)
            raise SessionLost(Lost("unavailable", retry_after_ms=error.retry_after_ms))
        self.ok = response.connect_ok
        self.origin = origin_of(self.ok.origin)
        self.pulls_max = self.ok.pulls_max
        # Which life of the gateway it is: ipconf names one that was killed until its lease ends,
        # and who was told to leave must not take the gateway for another one.
        self.gateway = self.gateway._replace(name=self.ok.gateway or self.gateway.name)
        self._since = self._clock.now()
        self.took_s = max(self.took_s, self._since - began)
        return self.ok

    # -------------------------------------------------------------------------- requests

    def call(self, request: pb.Request, on_answer: OnAnswer) -> int:
        """``on_answer`` is called once, from the loop. Returns the id of the request, 0: it could
        not be sent. Raises ValueError when the request is larger than a message of the protocol;
        nothing was sent then."""
        if self.ended.done() or self._wire is None:
            asyncio.get_running_loop().call_soon(on_answer, None)
            return 0
        body = self._seen.mark(request).SerializeToString()
        self.traffic_at = self._clock.now()
        self._next_id = self._next_id % 0xFFFF_FFFE + 1
        self._wire.send(frame.REQUEST, self._next_id, body)
        self._answers[self._next_id] = on_answer  # answers come in a later turn of the loop
        return self._next_id

    async def ask(self, request: pb.Request, timeout_s: float) -> pb.Response:
        """Raises ValueError as ``call`` does, SessionLost, and TimeoutError: then the connection
        stays. Whether it lives is for its heartbeats to say; a slow answer says that the IDC is
        slow, and would bring all its clients back at once. One that is not connected by then is
        given up, with SessionLost."""
        loop = asyncio.get_running_loop()
        future: asyncio.Future[pb.Response | None] = loop.create_future()

        def answered(response: pb.Response | None) -> None:
            if not future.done():
                future.set_result(response)

        late = False

        def too_late() -> None:
            nonlocal late
            if not future.done():
                late = True
                future.set_result(None)

        request_id = self.call(request, answered)
        # asyncio.timeout cancels the task, and costs several times as much: every pull asks.
        timer = loop.call_later(timeout_s, too_late)
        try:
            response = await future
        finally:
            timer.cancel()
            self._answers.pop(request_id, None)  # a late answer is nobody's
        if late:
            if self._since:
                raise TimeoutError
            self.end(Lost("timeout"))
        if response is None:
            raise SessionLost(self.ended.result())
        return response

    # ------------------------------------------------------------------------- receiving

    def _frame(self, received: frame.Frame) -> None:
        """Raises FrameError for what no gateway says: the wire ends, and with it the connection."""
        self.traffic_at = self._clock.now()
        try:
            self._take(received)
        except DecodeError as error:
            raise frame.FrameError(f"a body does not parse: {error}") from None

    def _take(self, received: frame.Frame) -> None:
        if received.type == frame.RESPONSE:
            response = pb.Response.FromString(received.body)
            self._seen.observe(response)
            on_answer = self._answers.pop(received.id, None)
            if on_answer is not None:
                on_answer(response)
        elif received.type == frame.EVENT:
            event = pb.Event.FromString(received.body)
            if event.HasField("packed"):
                event.push.ParseFromString(unpack(event.packed))  # in the place of it
            self._seen.observe(event)
            if event.HasField("close"):
                close = event.close
                self.end(Lost(close.reason, self.lived_ms(), close.retry_after_ms))
            else:
                self._on_event(self, event)

    # --------------------------------------------------------------------------- the end

    def lived_ms(self) -> int:
        return int((self._clock.now() - self._since) * 1000) + 1 if self._since else 0

    def _closed(self, reason: str) -> None:
        self.end(Lost(reason, self.lived_ms()))

    def end(self, lost: Lost) -> None:
        """Give the connection up; everything that waits for an answer gets None."""
        if self.ended.done():
            return
        self.ended.set_result(lost)
        if self._wire is not None:
            self._wire.close()
        answers, self._answers = self._answers, {}
        for on_answer in answers.values():
            on_answer(None)

    def close(self) -> None:
        self.end(Lost("closed", self.lived_ms()))
