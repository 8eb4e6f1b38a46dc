"""Writes an archive: rows are staged, then each segment becomes one Parquet file.

The order of steps is what makes it safe to kill it anywhere: files, their manifests, then
``archive.json``, which makes the run count; all of them durable before the next. Only then is taken
out of older files what has been recalled since, and a manifest always names a whole file.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

from imcore.errors import BadInput, Damaged
from imcore.hlc import to_ms
from imcore.proto import peer_pb2 as peer
from imctl.archive import layout
from imctl.archive.layout import Part, Segment, State
from imctl.errors import Failed
from services.engines.disk import RealDisk

# Of a row in a file. What says when is in microseconds, UTC.
COLUMNS = {
    "conversation": "VARCHAR",
    "sender": "VARCHAR",
    "device": "VARCHAR",
    "outbox": "VARCHAR",
    "cid": "UBIGINT",
    "sent_at": "TIMESTAMP",
    "composed_at": "TIMESTAMP",
    "content": "BLOB",
    "content_hash": "BLOB",
    "refs": "BLOB",
    "edited": "BOOLEAN",
    "recalled": "BOOLEAN",
    "place_hlc": "UBIGINT",
    "place_origin": "VARCHAR",
    "place_seq": "UBIGINT",
    "origin": "VARCHAR",
    "seq": "UBIGINT",
    "accepted": "UBIGINT",
}
KEY = ("conversation", "sender", "device", "outbox", "cid")
_BESIDE = {"day": "VARCHAR", "bucket": "INTEGER", "again": "BOOLEAN"}
_STAGED = {"BLOB": ("VARCHAR", "from_base64({0})"), "TIMESTAMP": ("BIGINT", "make_timestamp({0})")}
_AT_ONCE, _AT_ONCE_BYTES = 20_000, 16 << 20  # rows on their way into the stage, and their text
_STAGE = "stage"
_SECRET = ("content", "content_hash", "refs")


def duckdb() -> ModuleType:
    """Raises Failed where it is not installed."""
    try:
        import duckdb as found
    except ModuleNotFoundError as error:
        raise Failed("archives need DuckDB: pip install 'imctl[archive]'") from error
    return found


def said(error: Exception) -> str:
    """What DuckDB says, without the lines in which it draws."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(line for line in lines if not line.startswith("^"))


def quoted(text: str | Path) -> str:
    """As a literal of SQL."""
    return "'" + str(text).replace("'", "''") + "'"


def segments(folder: Path, run: int) -> list[Segment]:
    """Of the runs that count. Raises Damaged."""
    found = []
    for path in sorted(folder.glob(f"{layout.MESSAGES}/*/*/*.json")) + sorted(
        folder.glob(f"{layout.CHANGES}/*.json")
    ):
        number = layout.run_of(path.name)
        if number is not None and number <= run:
            name = path.relative_to(folder)
            segment = Segment.parse(path.read_bytes(), str(name))
            if segment.folder != str(name.parent) or layout.run_of(segment.file) != number:
                raise Damaged(f"{name} is the manifest of another file")
            found.append(segment)
    return found


def state(folder: Path) -> State | None:
    """None: there is no archive. Raises Damaged."""
    try:
        return State.parse((folder / layout.STATE).read_bytes())
    except FileNotFoundError:
        return None


def wrong(folder: Path, found: Iterable[Segment]) -> list[str]:
    """In one sentence each, what is not as the manifests say."""
    return [sentence for segment in found if (sentence := _wrong(folder, segment))]


def _wrong(folder: Path, segment: Segment) -> str:
    """Empty: it is whole."""
    name = f"{segment.folder}/{segment.file}"
    try:
        whole = _digest(folder / name) == (segment.size, segment.sha256)
    except FileNotFoundError:
        return f"{name} is missing"
    return "" if whole else f"{name} is not what its manifest says"


class Archive:
    """Held by one process at a time; a context. Raises BadInput when the folder is another
    region's, Unavailable when another process writes to it; Failed, as all of it, when the disk is
    full or gives an error."""

    def __init__(self, folder: Path, region: str) -> None:
        self.folder = folder
        self._duckdb = duckdb()
        self._disk = RealDisk()
        self._disk.make_folder(str(folder))
        self._lock = self._disk.lock(str(folder / "lock"), f"the archive {folder}")
        try:
            self.state = state(folder) or State(region)
            if self.state.region != region:
                raise BadInput(f"{folder} is the archive of the region {self.state.region}")
            self._clean()
            with self._working():
                self._database = self._duckdb.connect(
                    str(self._scratch("rows.duckdb")), config={"threads": 1}
                )
                self._open()
        except BaseException:
            self._lock.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(self._duckdb.Error):  # of what is thrown away
            self._database.close()
        shutil.rmtree(self.folder / _STAGE, ignore_errors=True)
        self._lock.close()

    @contextlib.contextmanager
    def _working(self) -> Iterator[None]:
        try:
            yield
        except self._duckdb.Error as error:
            raise Failed(f"the archive {self.folder} cannot be written: {said(error)}") from error

    def _scratch(self, name: str) -> Path:
        return self.folder / _STAGE / name

    def _clean(self) -> None:
        """What a run left over that was killed."""
        shutil.rmtree(self.folder / _STAGE, ignore_errors=True)
        (self.folder / _STAGE).mkdir(mode=0o700)
        named = {f"{s.folder}/{s.file}" for s in segments(self.folder, self.state.run)}
        emptied: set[Path] = set()
        paths = [*self.folder.glob(f"{layout.MESSAGES}/*/*/*")]
        for path in [*paths, *self.folder.glob(f"{layout.CHANGES}/*")]:
            run, name = layout.run_of(path.name), str(path.relative_to(self.folder))
            left_over = path.suffix == ".parquet" and name not in named
            if path.suffix == ".new" or left_over or (run is not None and run > self.state.run):
                path.unlink()
                emptied.add(path.parent)
        for folder in emptied:  # or it comes back with power, and counts once the next run does
            self._disk.sync_folder(str(folder))

    # ----------------------------------------------------------------------------- staging

    def _open(self) -> None:
        columns = ", ".join(f"{name} {kind}" for name, kind in (COLUMNS | _BESIDE).items())
        self._database.execute(f"CREATE TABLE stage ({columns})")
        self._waiting: list[str] = []
        self._waiting_bytes = 0

    def add(self, messages: Iterable[peer.ArchivedMessage]) -> None:
        for message in messages:
            row = json.dumps(_row(message))
            self._waiting.append(row)
            self._waiting_bytes += len(row)
        if len(self._waiting) >= _AT_ONCE or self._waiting_bytes >= _AT_ONCE_BYTES:
            self._flush()

    def _flush(self) -> None:
        """By a file: DuckDB takes a thousand times longer for rows one by one."""
        path = self._scratch("rows.json")
        path.write_text("\n".join(self._waiting))
        self._waiting.clear()
        self._waiting_bytes = 0
        kinds = COLUMNS | _BESIDE
        staged = {name: _STAGED.get(kind, (kind, "{0}")) for name, kind in kinds.items()}
        read = ", ".join(f"{quoted(name)}: {quoted(kind)}" for name, (kind, _) in staged.items())
        wanted = ", ".join(made.format(name) for name, (_, made) in staged.items())
        with self._working():
            self._database.execute(
                f"INSERT INTO stage SELECT {wanted} FROM read_json({quoted(path)}, "
                f"format = 'newline_delimited', columns = {{{read}}})"
            )
        path.unlink()

    # ----------------------------------------------------------------------------- writing

    def write(self, idc: str, until: int, applied: Mapping[str, list[int]]) -> list[Segment]:
        """What was added becomes the next run, up to ``until``."""
        if self._waiting:
            self._flush()
        with self._working():
            return self._write(idc, until, applied)

    def _write(self, idc: str, until: int, applied: Mapping[str, list[int]]) -> list[Segment]:
        run, written = self.state.run + 1, []
        about = Segment("", layout.file_name(run), run, idc, self.state.until, until, 0, 0, 0, "")
        about = replace(about, applied=applied)
        places = self._database.execute(
            "SELECT DISTINCT day, bucket FROM stage WHERE NOT again ORDER BY ALL"
        ).fetchall()
        for day, bucket in places:
            rows = f"FROM stage WHERE NOT again AND day = {quoted(day)} AND bucket = {bucket}"
            segment = replace(about, folder=layout.messages_folder(day, bucket))
            written.append(self._segment(segment, rows))
        if self._database.execute("SELECT count(*) FROM stage WHERE again").fetchall()[0][0]:
            rows = f"FROM (SELECT DISTINCT ON ({', '.join(KEY)}) * FROM stage WHERE again)"
            written.append(self._segment(replace(about, folder=layout.CHANGES), rows))
        self._commit(replace(self.state, run=run, until=until))
        return written

    def _commit(self, changed: State) -> None:
        self._disk.write_whole(str(self.folder / layout.STATE), changed.dump())
        self.state = changed

    def _segment(self, segment: Segment, rows: str) -> Segment:
        """``rows``: from where, as SQL. The manifest comes last."""
        target = self.folder / segment.folder / segment.file
        self._disk.make_folder(str(target.parent))  # durable too: nobody would miss its manifests
        new = target.with_suffix(".new")
        columns = ", ".join(COLUMNS)
        self._database.execute(
            f"COPY (SELECT {columns} {rows} ORDER BY conversation, place_hlc, place_origin, "
            f"place_seq) TO {quoted(new)} (FORMAT parquet, COMPRESSION zstd)"
        )
        size, digest = _digest(new)
        file = self._disk.open(str(new))
        file.sync()
        file.close()
        self._disk.rename(str(new), str(target))
        held = f"FROM read_parquet({quoted(target)})"
        counted = self._database.execute(
            f"SELECT origin, count(*), min(accepted), max(accepted) {held} GROUP BY origin"
        ).fetchall()
        [(conversations, erased)] = self._database.execute(
            f"SELECT count(DISTINCT conversation), count_if(recalled) {held}"
        ).fetchall()
        made = replace(
            segment,
            messages=sum(row[1] for row in counted),
            conversations=conversations,
            size=size,
            sha256=digest,
            erased=erased,
            origins={row[0]: Part(*row[1:]) for row in sorted(counted)},
        )
        self._disk.sync_folder(str(target.parent))
        manifest = target.with_name(layout.manifest_name(segment.run))
        self._disk.write_whole(str(manifest), made.dump())
        return made

    # ----------------------------------------------------------------------------- erasing

    def erase(self) -> int:
        """Take out of older files what was recalled since; returns of how many messages. A damaged
        one is not written anew, as it would then be what its manifest says: Raises Damaged, once it
        is out of all others, and they are done again."""
        if self.state.erased == self.state.run:
            return 0
        with self._working():
            return self._erase()

    def _erase(self) -> int:
        every = segments(self.folder, self.state.run)
        fresh = [s for s in every if s.kind == layout.CHANGES and s.run > self.state.erased]
        self._refuse(wrong(self.folder, fresh))
        count, damaged = 0, []
        if fresh:
            files = ", ".join(quoted(self.folder / s.folder / s.file) for s in fresh)
            self._database.execute(
                f"CREATE OR REPLACE TABLE recalled AS SELECT {', '.join(KEY)}, accepted "
                f"FROM read_parquet([{files}]) WHERE recalled"
            )
            rows = self._database.execute("SELECT DISTINCT conversation, accepted FROM recalled")
            touched = {
                layout.messages_folder(layout.day_of(accepted), layout.bucket_of(conversation))
                for conversation, accepted in rows.fetchall()
            }
            for segment in every:
                if segment.folder in touched or segment.kind == layout.CHANGES:
                    if sentence := _wrong(self.folder, segment):
                        damaged.append(sentence)
                    else:
                        count += self._erase_in(segment)
        self._refuse(damaged)
        self._commit(replace(self.state, erased=self.state.run))
        return count

    def _refuse(self, damaged: list[str]) -> None:
        if damaged:
            raise Damaged(
                f"{'; '.join(damaged)}: what was recalled cannot be taken out of that. Put back a "
                f"copy of it, or move {self.folder} away and archive anew, and run this again"
            )

    def _erase_in(self, segment: Segment) -> int:
        path = self.folder / segment.folder / segment.file
        held = f"FROM read_parquet({quoted(path)})"
        same = f"({', '.join(KEY)}) IN (SELECT ({', '.join(KEY)}) FROM recalled)"
        [(count,)] = self._database.execute(
            f"SELECT count(*) {held} WHERE NOT recalled AND {same}"
        ).fetchall()
        if count:
            left_out = ", ".join(f"if(gone, NULL, {name}) AS {name}" for name in _SECRET)
            left_out += ", edited AND NOT gone AS edited, recalled OR gone AS recalled"
            rows = f"FROM (SELECT * REPLACE ({left_out}) FROM (SELECT *, {same} AS gone {held}))"
            name = layout.file_name(segment.run, self.state.run)
            self._segment(replace(segment, file=name), rows)
            path.unlink()
            self._disk.sync_folder(str(path.parent))
        return int(count)


def _digest(path: Path) -> tuple[int, str]:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        return file.tell(), digest


def _row(message: peer.ArchivedMessage) -> dict[str, Any]:
    key, place = message.key, message.place
    return {
        "conversation": key.conversation,
        "sender": key.uid,
        "device": key.device,
        "outbox": key.outbox,
        "cid": key.cid,
        "sent_at": to_ms(place.hlc) * 1000,
        "composed_at": message.composed_ms * 1000,
        "content": None if message.recalled else _text(message.content),
        "content_hash": _text(message.content_hash) if message.content_hash else None,
        "refs": _text(message.refs) if message.refs else None,
        "edited": message.edited,
        "recalled": message.recalled,
        "place_hlc": place.hlc,
        "place_origin": f"{place.origin.idc}.{place.origin.incarnation}",
        "place_seq": place.seq,
        "origin": f"{message.origin.idc}.{message.origin.incarnation}",
        "seq": message.seq,
        "accepted": message.accepted,
        "day": layout.day_of(message.accepted),
        "bucket": layout.bucket_of(key.conversation),
        "again": message.again,
    }


def _text(content: bytes) -> str:
    return base64.b64encode(content).decode()
