"""Scripted gateways and ipconf on loopback: the real wire protocol over TLS, no real service.

For tests of clients: what an IDC knows is a few dicts, and the script decides what goes wrong
(``Idc`` has a field for each fault). It keeps the rules that a client relies on: cids, floors,
places, copies and positions; it authorizes nobody.
"""

from __future__ import annotations

import asyncio
import base64
import json
import ssl
import zlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, cast

from aiohttp import web

from imcore import frame
from imcore.attest import RegionKeys, content_hash
from imcore.convert import attested_pb, key_of, origin_pb, place_of, positions_pb, stamp_pb
from imcore.limits import PULLS_MAX
from imcore.proto import client_pb2 as pb
from imcore.words import IDC_HEADER, ClientKey, Origin, Place, Vector

KEYS = RegionKeys({1: b"scripted region key, 32 bytes...."[:32]}, 1)


@dataclass
class Copy:
    """One accepted message, as an IDC holds it."""

    key: ClientKey
    content: bytes
    origin: Origin
    seq: int
    hlc: int
    place: Place
    refs: bytes = b""


@dataclass
class Region:
    """``clock`` is the next HLC; ``epoch`` the policy's; ``order`` what ipconf answers, which is
    the IDC ``ipconf_of``'s."""

    tls: ssl.SSLContext
    clock: int = 1
    epoch: int = 1
    idcs: dict[str, Idc] = field(default_factory=dict)
    order: list[str] = field(default_factory=list)
    parameters: dict[str, Any] = field(default_factory=dict)
    lookups: list[dict[str, str]] = field(default_factory=list)
    reports: list[dict[str, str]] = field(default_factory=list)
    refuse_tokens: bool = False
    ipconf_down: bool = False
    ipconf_of: str = "fra"
    ipconf_overloaded_ms: int = 0  # the next lookup is turned away for so long
    _runner: web.AppRunner | None = None
    url: str = ""

    async def start(self, *names: str) -> Region:
        for name in names:
            self.idcs[name] = idc = Idc(self, Origin(name, 1))
            await idc.start()
        self.order = list(names)
        app = web.Application()
        app.router.add_get("/v1/gateways", self._gateways)
        app.router.add_post("/v1/reports", self._reported)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0, ssl_context=self.tls)
        await site.start()
        self.url = f"https://127.0.0.1:{self._runner.addresses[0][1]}"
        return self

    async def stop(self) -> None:
        for idc in self.idcs.values():
            await idc.stop()
        if self._runner is not None:
            await self._runner.cleanup()

    async def _gateways(self, request: web.Request) -> web.Response:
        self.lookups.append({**request.query, **dict(request.headers)})
        if self.refuse_tokens:
            error = {"code": "unauthenticated", "message": "the token has expired"}
            return web.json_response(
                {"error": error}, status=401, headers={IDC_HEADER: self.ipconf_of}
            )
        if wait_ms := self.ipconf_overloaded_ms:
            self.ipconf_overloaded_ms = 0
            busy = {"code": "overloaded", "message": "busy", "retry_after_ms": wait_ms}
            return web.json_response({"error": busy}, status=429)
        if self.ipconf_down:
            error = {"code": "unavailable", "message": "down"}
            return web.json_response({"error": error}, status=503)
        gateways = [
            {
                "idc": n,
                "gateway": self.idcs[n].listed_as,
                "host": "127.0.0.1",
                "port": self.idcs[n].port,
            }
            for n in self.order
        ]
        return web.json_response(
            {
                "policy_epoch": self.epoch,
                "placement": "dGlja2V0",
                "gateways": gateways,
                "parameters": self.parameters,
            }
        )

    async def _reported(self, request: web.Request) -> web.Response:
        self.reports.extend((await request.json())["reports"])
        return web.Response(status=204)

    def mirror(self) -> None:
        """Every IDC gets what the others have; senders are told that it is replicated."""
        for source in self.idcs.values():
            for copies in list(source.own.values()):
                for copy in copies:
                    for target in self.idcs.values():
                        target.take(copy)
            for connection in source.connections:
                lsn = source.lsn
                replicated = pb.Replicated(origin=origin_pb(source.origin), partition=0, lsn=lsn)
                connection.event(pb.Event(replicated=replicated))


class Idc:
    """One IDC with one gateway. Faults:

    ``mute``: kinds of requests that are not answered; ``drop_sends``: so many sends are accepted
    and then the connection is dropped without an ack; ``drop_pushes``: so many pushes are lost;
    ``lose_heartbeats``: so many break their connection unread;
    ``drop_connects``: connections are closed right after ConnectOk; ``errors``: the next answers
    to this kind of request; ``page``: entries of a page; ``quiet_max_ms``: between two heartbeats;
    ``packs``: pushes are packed, however small; ``listed_as``: what ipconf calls the gateway;
    ``pulls_max``: so many pulls a request may hold, of which ``pulls_answered`` have room.
    """

    def __init__(self, region: Region, origin: Origin) -> None:
        self.region = region
        self.origin = origin
        self.port = 0
        self.gateway = self.listed_as = f"{origin.idc}-gw-1"
        self.own: dict[str, list[Copy]] = {}
        self.held: dict[str, dict[Origin, dict[int, Copy]]] = {}
        self.classes: dict[ClientKey, Copy] = {}
        self.places: dict[ClientKey, Place] = {}
        self.lsn = 0
        self.connections: list[Connection] = []  # whose Connect was answered
        self.open = 0  # all that stand
        self.connects: list[pb.Connect] = []
        self.requests: Counter[str] = Counter()
        self.sends: list[pb.Send] = []
        self.claims: list[pb.Claim] = []
        self.listed: list[pb.ConversationSummary] = []
        self.members: list[str] = []  # of any group; none: who asks
        self.settings: list[pb.SetConversation] = []
        self.read_by: list[pb.ReadersOk] = []
        self.found: list[pb.SearchOk] = []
        self.changes: list[pb.Change] = []  # those that were answered with an error too
        self.acks: dict[str, Vector] = {}
        self.mute: set[str] = set()
        self.drop_sends = 0
        self.drop_pushes = 0
        self.drop_connects = False
        self.packs = False
        self.lose_heartbeats = 0
        self.errors: dict[str, list[pb.Error]] = {}
        self.page = 200
        self.pulls_max = 0  # as ConnectOk says
        self.pulls_answered = PULLS_MAX  # of one request
        self.told_behind = True
        self.quiet_max_ms = 60_000
        self.quiet_ms: list[int] = []  # what heartbeats asked for
        self._server: asyncio.Server | None = None

    async def start(self) -> None:
        loop = asyncio.get_running_loop()
        self._server = await loop.create_server(
            lambda: Connection(self), "127.0.0.1", self.port, ssl=self.region.tls
        )
        self.port = self._server.sockets[0].getsockname()[1]

    async def stop(self) -> None:
        """As a killed process: listener and connections go at once."""
        if self._server is not None:
            self._server.close()
            for connection in list(self.connections):
                connection.abort()
            await self._server.wait_closed()
            self._server = None

    # ------------------------------------------------------------------------- messages

    def accept(
        self, key: ClientKey, content: bytes, placed: Place | None = None, refs: bytes = b""
    ) -> Copy:
        """A new message of this origin, pushed to everybody who is connected here."""
        copies = self.own.setdefault(key.conversation, [])
        self.region.clock += 1
        self.lsn += 1
        seq, hlc = len(copies) + 1, self.region.clock << 16
        place = placed or Place(hlc, self.origin, seq)
        copy = Copy(key, content, self.origin, seq, hlc, place, refs)
        copies.append(copy)
        self.take(copy)
        return copy

    def take(self, copy: Copy) -> None:
        held = self.held.setdefault(copy.key.conversation, {}).setdefault(copy.origin, {})
        if copy.seq in held:
            return
        held[copy.seq] = copy
        best = self.classes.get(copy.key)
        if best is None or copy.place < best.place:
            self.classes[copy.key] = copy
        self.places[copy.key] = min(copy.place, self.places.get(copy.key, copy.place))
        for connection in self.connections:
            connection.push([copy])

    def heads(self, conversation: str) -> Vector:
        return {o: max(held) for o, held in self.held.get(conversation, {}).items()}

    def entry(self, copy: Copy) -> pb.Entry:
        entry = pb.Entry(origin=origin_pb(copy.origin), seq=copy.seq, hlc=copy.hlc)
        entry.message.placed.CopyFrom(self.attest(copy))
        entry.message.content, entry.message.refs = copy.content, copy.refs
        return entry

    def attest(self, copy: Copy) -> pb.Attested:
        digest = content_hash(copy.content, copy.refs)
        place = self.places[copy.key]
        return attested_pb(KEYS.attest(copy.key, digest, copy.origin, copy.seq, place))

    def everybody(self, event: pb.Event) -> None:
        for connection in list(self.connections):
            connection.event(event)


class Connection(asyncio.Protocol):
    def __init__(self, idc: Idc) -> None:
        self.idc = idc
        self.uid = self.device = ""
        self.pull_only = False
        self._decoder = frame.FrameDecoder()
        self._preface = b""
        self._transport: asyncio.Transport | None = None
        self._dropping = False
        self._silent = False  # accepts, but never answers again

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none of its classes
        self.idc.open += 1

    def connection_lost(self, exc: Exception | None) -> None:
        self.idc.open -= 1
        if self in self.idc.connections:
            self.idc.connections.remove(self)

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        if len(self._preface) < frame.CLIENT_PREFACE_BYTES:
            self._preface += data
            if len(self._preface) < frame.CLIENT_PREFACE_BYTES:
                return
            head, data = (
                self._preface[: frame.CLIENT_PREFACE_BYTES],
                self._preface[frame.CLIENT_PREFACE_BYTES :],
            )
            self._preface = head
            self._transport.write(frame.server_preface(frame.parse_client_preface(head)))
        for received in self._decoder.feed(data):
            if not self._dropping:
                self._request(received.id, pb.Request.FromString(received.body))

    def raw(self, data: bytes) -> None:
        """Bytes that may be no frame at all."""
        assert self._transport is not None
        self._transport.write(data)

    def abort(self) -> None:
        self._dropping = True
        if self._transport is not None:
            self._transport.abort()

    def event(self, event: pb.Event) -> None:
        if not self.pull_only:
            event.stamp.CopyFrom(stamp_pb(KEYS.stamp(self.idc.region.clock << 16)))
            self.raw(frame.encode(frame.EVENT, 0, event.SerializeToString()))

    def push(self, copies: list[Copy]) -> None:
        if self.idc.drop_pushes:
            self.idc.drop_pushes -= 1
            return
        push = pb.Push(conversation=copies[0].key.conversation)
        push.entries.extend(self.idc.entry(copy) for copy in copies)
        if self.idc.packs:
            whole = push.SerializeToString()
            packed = pb.Packed(size=len(whole), body=zlib.compress(whole))
            packed.packing = pb.PACKING_ZLIB
            self.event(pb.Event(packed=packed))
        else:
            self.event(pb.Event(push=push))

    # --------------------------------------------------------------------------- requests

    def _request(self, request_id: int, request: pb.Request) -> None:
        kind = request.WhichOneof("body") or ""
        idc = self.idc
        idc.requests[kind] += 1
        response = pb.Response(stamp=stamp_pb(KEYS.stamp(idc.region.clock << 16)))
        if kind == "change":
            idc.changes.append(request.change)
        errors = idc.errors.get(kind)
        if errors:
            response.error.CopyFrom(errors.pop(0))
        else:
            handle: Callable[[pb.Request, pb.Response], None] = getattr(self, f"_{kind}", self._ok)
            handle(request, response)
        if kind in idc.mute or self._silent:
            return
        self.raw(frame.encode(frame.RESPONSE, request_id, response.SerializeToString()))
        if kind == "connect" and not response.HasField("error"):
            idc.connections.append(self)
            if idc.drop_connects:
                assert self._transport is not None
                self._transport.close()

    def _ok(self, request: pb.Request, response: pb.Response) -> None:
        response.ok.SetInParent()

    def _connect(self, request: pb.Request, response: pb.Response) -> None:
        connect = request.connect
        self.idc.connects.append(connect)
        self.uid, self.device = connect.token.decode().split(".")[-1].split(":")
        self.pull_only = connect.mode == pb.CONNECT_MODE_PULL_ONLY
        ok = response.connect_ok
        ok.session = f"s{len(self.idc.connects)}"
        ok.resume_token = b"resume"
        ok.origin.CopyFrom(origin_pb(self.idc.origin))
        ok.gateway = self.idc.gateway
        ok.pulls_max = self.idc.pulls_max

    def _heartbeat(self, request: pb.Request, response: pb.Response) -> None:
        asked_ms = request.heartbeat.next_ms
        response.heartbeat_ok.next_ms = min(asked_ms, self.idc.quiet_max_ms)
        self.idc.quiet_ms.append(asked_ms)
        if self.idc.lose_heartbeats:
            self.idc.lose_heartbeats -= 1
            self._silent = True
            self.abort()
            return
        for ack in request.heartbeat.acks:
            reached = self.idc.acks.setdefault(ack.conversation, {})
            for position in ack.heads:
                origin = Origin(position.origin.idc, position.origin.incarnation)
                reached[origin] = position.seq
        if self.idc.told_behind:
            for conversation in self.idc.held:
                heads = self.idc.heads(conversation)
                reached = self.idc.acks.get(conversation, {})
                if any(seq > reached.get(origin, 0) for origin, seq in heads.items()):
                    response.heartbeat_ok.behind.add(
                        conversation=conversation, heads=positions_pb(heads)
                    )

    def _send(self, request: pb.Request, response: pb.Response) -> None:
        send, idc = request.send, self.idc
        idc.sends.append(send)
        key = ClientKey(self.uid, self.device, send.outbox, send.conversation, send.cid)
        known = idc.classes.get(key)
        ack = response.send_ack
        if known is not None:
            if (known.content, known.refs) != (send.content, send.refs):
                response.error.code = "cid_conflict"
                return
            ack.outcome = pb.SendAck.KNOWN
            if send.HasField("placed"):
                place = place_of(send.placed.place)
                idc.places[key] = min(place, idc.places[key])
        else:
            want = send.floor
            while key._replace(cid=want) in idc.classes:
                want += 1
            if send.cid != want:
                ack.outcome, ack.want = pb.SendAck.WANT, want
                return
            placed = place_of(send.placed.place) if send.HasField("placed") else None
            known = idc.accept(key, send.content, placed, send.refs)
        ack.placed.CopyFrom(idc.attest(known))
        ack.lsn = idc.lsn
        if idc.drop_sends:
            idc.drop_sends -= 1
            self._silent = True
            if not idc.drop_sends:
                self.abort()

    def _pull(self, request: pb.Request, response: pb.Response) -> None:
        self._page(request.pull, response.pull_ok)

    def _pulls(self, request: pb.Request, response: pb.Response) -> None:
        for pull in request.pulls.pulls[: self.idc.pulls_answered]:
            self._page(pull, response.pulls_ok.answers.add().pull_ok)

    def _page(self, pull: pb.Pull, ok: pb.PullOk) -> None:
        have = {(p.origin.idc, p.origin.incarnation): p.seq for p in pull.have}
        missing = [
            copy
            for origin, held in self.idc.held.get(pull.conversation, {}).items()
            for seq, copy in held.items()
            if seq > have.get(origin, 0)
        ]
        missing.sort(key=lambda copy: (copy.hlc, copy.origin, copy.seq))
        limit = min(pull.limit or self.idc.page, self.idc.page)
        ok.entries.extend(self.idc.entry(copy) for copy in missing[:limit])
        ok.more = len(missing) > limit
        ok.heads.extend(positions_pb(self.idc.heads(pull.conversation)))

    def _sync(self, request: pb.Request, response: pb.Response) -> None:
        names = sorted(self.idc.held)
        start = int(request.sync.page or b"0")
        limit = min(request.sync.limit, self.idc.page)
        for name in names[start : start + limit]:
            response.sync_ok.conversations.add(
                conversation=name, heads=positions_pb(self.idc.heads(name))
            )
        if start + limit < len(names):
            response.sync_ok.next_page = b"%d" % (start + limit)

    def _history(self, request: pb.Request, response: pb.Response) -> None:
        history = request.history
        keys = [k for k in self.idc.classes if k.conversation == history.conversation]
        keys.sort(key=lambda key: (self.idc.places[key], key))
        if history.HasField("before"):
            before = place_of(history.before)
            keys = [key for key in keys if self.idc.places[key] < before]
        for key in keys[-history.limit :]:
            response.pull_ok.entries.append(self.idc.entry(self.idc.classes[key]))

    def _group_info(self, request: pb.Request, response: pb.Response) -> None:
        members = self.idc.members or [self.uid]
        later = [uid for uid in members if uid > request.group_info.after]
        response.group_info_ok.members.extend(later[:2])
        response.group_info_ok.more = len(later) > 2

    def _conversations(self, request: pb.Request, response: pb.Response) -> None:
        """A page for each, the last one without a token."""
        pages = self.idc.listed
        number = int(request.conversations.page or b"0")
        response.conversations_ok.conversations.append(pages[number])
        if number + 1 < len(pages):
            response.conversations_ok.next_page = b"%d" % (number + 1)

    def _readers(self, request: pb.Request, response: pb.Response) -> None:
        """A page for each, the last one without a token."""
        pages = self.idc.read_by
        number = int(request.readers.page or "0")
        response.readers_ok.CopyFrom(pages[number])
        if number + 1 < len(pages):
            response.readers_ok.next_page = str(number + 1)

    def _search(self, request: pb.Request, response: pb.Response) -> None:
        """A page for each, the last one without a token."""
        pages, number = self.idc.found, request.search.page.before.seq
        response.search_ok.CopyFrom(pages[number])
        if number + 1 < len(pages):
            response.search_ok.next_page.before.seq = number + 1

    def _set_conversation(self, request: pb.Request, response: pb.Response) -> None:
        self.idc.settings.append(request.set_conversation)
        response.ok.SetInParent()

    def _claim(self, request: pb.Request, response: pb.Response) -> None:
        self.idc.claims.append(request.claim)
        for claim in request.claim.claims:
            key = key_of(claim.key)
            place = place_of(claim.place)
            self.idc.places[key] = min(place, self.idc.places.get(key, place))
        response.ok.SetInParent()


def token_of(uid: str, device: str = "phone") -> str:
    """Unsigned: scripted gateways take it, real ones do not."""
    body = json.dumps({"uid": uid, "device": device}).encode()
    return f"{base64.urlsafe_b64encode(body).decode().rstrip('=')}.{uid}:{device}"
