"""On which engine the KV of this IDC is, and its way to another while it serves.

What the KV *is* on stands in a note in the data folder, which a move changes at the moment of its
switch; the region file says what it *should* be on. Where the two name different engines the note
counts, with an alarm: a KV that was moved must not come back empty because a file is older.
"""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import asdict
from typing import Any, TypeAlias

import grpc
from pydantic import ValidationError

from imcore.errors import BadInput, Code, ImError, Refused
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.region.model import KvEngine
from imcore.region.rules import kv_prefix
from services.engines.disk import Disk
from services.engines.moving_kv import Move, MovingKv
from services.node.config import NodeConfig
from services.ports import Kv

log = logging.getLogger("im.kv")

NOTE = "kv-engine.json"
_PROGRESS_S = 0.2
Context: TypeAlias = "grpc.aio.ServicerContext[Any, Any]"
OpenStore = Callable[[KvEngine], Awaitable[Kv]]


def name_of(engine: KvEngine) -> str:
    return "embedded" if engine.tikv is None else "tikv"


def parse(text: str) -> KvEngine:
    """Raises BadInput."""
    try:
        return KvEngine.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        raise BadInput(f"engines.kv: {first['msg']}, got {text}") from error


def dump(engine: KvEngine) -> str:
    return '"embedded"' if engine.tikv is None else engine.model_dump_json(exclude_none=True)


EMBEDDED = parse('"embedded"')


class KvEngines:
    """``current`` is what the KV is on."""

    def __init__(self, config: NodeConfig, disk: Disk, open_store: OpenStore) -> None:
        self._config = config
        self._disk = disk
        self._open_store = open_store
        self._wanted = config.idc.engines.kv
        self.current = self._wanted
        self._target = self._wanted
        self._moving: asyncio.Task[None] | None = None
        self._phase = ""  # of the move that is under way, before and after its store's own
        self.problem: str | None = None  # of the last move

    async def open(self) -> MovingKv:
        """Raises BadInput when the note cannot be read, and what the engine raises."""
        noted = await asyncio.to_thread(self._read)
        if noted is not None and name_of(noted) != name_of(self._wanted):
            self.current = noted
        elif noted != self._wanted:
            await self._write(self._wanted)  # its addresses may be new
        self.kv = MovingKv(await self._open_store(self.current))
        return self.kv

    def _read(self) -> KvEngine | None:
        path = self._config.data / NOTE
        try:
            text = self._disk.read(str(path)).decode()
        except FileNotFoundError:
            # From before there were notes.
            return EMBEDDED if self._disk.list(str(self._config.data / "kv")) else None
        try:
            return parse(text)
        except BadInput as error:
            raise BadInput(f"{path} does not say on which engine the KV is: {error}") from error

    async def _write(self, engine: KvEngine) -> None:
        text = dump(engine).encode()
        path = str(self._config.data / NOTE)
        await asyncio.to_thread(self._disk.write_whole, path, text)

    # ------------------------------------------------------------------------------- moving

    def move_to(self, engine: KvEngine) -> None:
        """Begin, unless this very move is under way. Raises Refused."""
        if self._moving is not None:
            if engine != self._target:
                raise Refused(Code.FORBIDDEN, "another move of this KV is under way")
            return
        if name_of(engine) == name_of(self.current):
            self._check_same_store(engine)
            return
        self.problem, self._target, self._phase = None, engine, "open"
        self._moving = asyncio.ensure_future(self._move(engine))
        self._moving.add_done_callback(self._moved)

    def _check_same_store(self, engine: KvEngine) -> None:
        """Raises Refused for another TiKV than the one that the KV is on: to say that it is there
        would be a lie, and at the next start that one, which is empty, would count."""
        wanted, there = engine.tikv, self.current.tikv
        if wanted is None or there is None:
            return
        usual = kv_prefix(self._config.region, self._config.idc)
        same_prefix = (wanted.prefix or usual) == (there.prefix or usual)
        if set(wanted.pd) != set(there.pd) or not same_prefix:
            raise Refused(
                Code.FORBIDDEN,
                f"the KV is on the TiKV behind PD {', '.join(there.pd)} already, and moves to "
                "another TiKV by way of the embedded engine only: move it there first",
            )

    def _moved(self, task: asyncio.Task[None]) -> None:
        self._moving = None
        if task.cancelled():
            if self.current is not self._target:
                self.problem = "it was cancelled"
        elif error := task.exception():
            self.problem = str(error)
            known = None if isinstance(error, ImError | OSError) else error
            log.error("the move of the KV failed: %s", error, exc_info=known)

    async def cancel_move(self) -> None:
        """Nothing has changed then, unless it had just come to its end."""
        if self._moving is not None:
            self._moving.cancel()
            await asyncio.gather(self._moving, return_exceptions=True)

    async def close(self) -> None:
        """With its node: a move that is under way ends first, and its new store with it."""
        await self.cancel_move()
        await self.kv.close()

    async def _move(self, engine: KvEngine) -> None:
        scratch = self._config.data / "kv-move"
        await asyncio.to_thread(shutil.rmtree, scratch, True)
        store = await self._open_store(engine)

        async def note() -> None:
            try:
                await self._write(engine)
            except ImError:
                await self._write(self.current)  # it may have been written all the same
                raise
            # Whoever asked for the move sees to the region file, which is read at the next start.
            self.current = self._wanted = engine

        log.warning("the KV moves from %s to %s", name_of(self.current), name_of(engine))
        try:
            await self.kv.move_to(store, scratch, note)
            log.warning("the KV is on %s now", name_of(engine))
        except BaseException:
            if self.current is not engine:
                await store.close()
            raise
        finally:
            self._phase = "clean up"
            await asyncio.to_thread(shutil.rmtree, scratch, True)

    # ------------------------------------------------------------------------------ looking

    def status(self) -> dict[str, Any]:
        move = self.kv.move or (Move(self._phase) if self.moving else None)
        return {"engine": name_of(self.current), "move": move and asdict(move)}

    @property
    def moving(self) -> bool:
        return self._moving is not None

    @property
    def alarm(self) -> str | None:
        is_on, wanted = name_of(self.current), name_of(self._wanted)
        if is_on == wanted or self.moving:
            return None
        return (
            f"the KV is on {is_on} and the region file says {wanted}: move it with "
            f"`imctl migrate kv --to {wanted}`, or correct the file"
        )


class EnginesService(rpc.EnginesServicer):
    def __init__(self) -> None:
        self.kv: KvEngines | None = None  # once it serves

    async def MoveKv(
        self, request: peer.MoveKvRequest, context: Context
    ) -> AsyncIterator[peer.MoveKvProgress]:
        engines = self.kv
        if engines is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "the KV is not open yet")
            raise AssertionError("abort raises")
        try:
            if request.cancel:
                await engines.cancel_move()
            else:
                engines.move_to(parse(request.engine_json))
        except BadInput as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except Refused as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        while engines.moving:
            yield _progress(engines)
            await asyncio.sleep(_PROGRESS_S)
        yield _progress(engines)


def _progress(engines: KvEngines) -> peer.MoveKvProgress:
    status = engines.status()
    move = status["move"] or {"phase": "failed" if engines.problem else "done"}
    return peer.MoveKvProgress(engine=status["engine"], problem=engines.problem or "", **move)
