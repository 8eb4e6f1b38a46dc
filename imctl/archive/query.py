"""Reads an archive with SQL: select alone, and nothing but the archive's own files."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from imcore.errors import BadInput, Damaged
from imctl.archive import layout
from imctl.archive.layout import Segment
from imctl.archive.store import COLUMNS, KEY, duckdb, quoted, said, segments, state
from imctl.errors import Failed

_AT_ONCE = 1000
# Of a message that has changed since it was archived: as the newest run that says so has it.
_NEWEST = f"""
CREATE VIEW changed AS SELECT * FROM all_changes
QUALIFY row_number() OVER (PARTITION BY {", ".join(KEY)} ORDER BY run DESC) = 1
"""
_SHOWN = """
CREATE VIEW messages AS SELECT
    conversation, sender, device, sent_at, {texts},
    edited, recalled, composed_at, outbox, cid, content, content_hash, refs,
    place_hlc, place_origin, place_seq, origin, seq, day, bucket
FROM (
    SELECT {shown}, m.day, m.bucket
    FROM all_messages m LEFT JOIN changed c USING ({key})
)
"""
_CONVERSATIONS = """
CREATE VIEW conversations AS SELECT
    conversation, count(*) AS messages, count(DISTINCT sender) AS senders,
    min(sent_at) AS first_at, max(sent_at) AS last_at
FROM messages GROUP BY conversation
"""


class Result:
    """``columns``: name and type of each. Rows are read as they are wanted."""

    def __init__(self, cursor: Any, errors: type[Exception]) -> None:
        self.columns = [(str(each[0]), str(each[1])) for each in cursor.description]
        self._cursor = cursor
        self._errors = errors

    def rows(self) -> Iterator[Sequence[Any]]:
        """Raises BadInput: some errors only show in the data."""
        while True:
            try:
                found = self._cursor.fetchmany(_AT_ONCE)
            except self._errors as error:
                raise BadInput(said(error)) from error
            if not found:
                return
            yield from found


def run(folder: Path, sql: str) -> Result:
    """Raises BadInput for what is no select, or a wrong one; Failed where there is no archive, or
    its files are not there; Damaged."""
    engine = duckdb()
    found = state(folder)
    if found is None:
        raise Failed(f"there is no archive in {folder}; `imctl archive` writes one")
    _check(engine, sql)
    database = engine.connect(":memory:")
    try:
        _prepare(database, folder, segments(folder, found.run))
    except engine.Error as error:
        raise Damaged(f"the archive cannot be read: {said(error)}") from error
    try:
        database.execute("BEGIN TRANSACTION READ ONLY")
        return Result(database.execute(sql), engine.Error)
    except engine.IOException as error:
        raise Failed(f"the archive cannot be read: {said(error)}") from error
    except engine.Error as error:
        raise BadInput(said(error)) from error


def _check(engine: Any, sql: str) -> None:
    try:
        kinds = [statement.type for statement in engine.extract_statements(sql)]
    except engine.Error as error:
        raise BadInput(said(error)) from error
    if kinds != [engine.StatementType.SELECT]:
        got = ", ".join(kind.name.lower() for kind in kinds) or "nothing"
        raise BadInput(f"expected one select, got {got}")


def _prepare(database: Any, folder: Path, found: Sequence[Segment]) -> None:
    files = [str((folder / s.folder / s.file).absolute()) for s in found]
    allowed = ", ".join(map(quoted, files))
    for setting in (
        "temp_directory = ''",
        "timezone = 'UTC'",
        "python_enable_replacements = false",  # a name would be looked up among variables here
        f"allowed_paths = [{allowed}]",
        "enable_external_access = false",
    ):
        database.execute(f"SET {setting}")
    database.execute("SET lock_configuration = true")
    for name, kind in (("all_messages", layout.MESSAGES), ("all_changes", layout.CHANGES)):
        wanted = [file for file, s in zip(files, found, strict=True) if s.kind == kind]
        database.execute(_over(name, wanted, kind == layout.MESSAGES))
    database.execute(_NEWEST)
    others = [name for name in COLUMNS if name not in KEY]
    shown = [f"CASE WHEN c.run IS NULL THEN m.{o} ELSE c.{o} END AS {o}" for o in others]
    texts = "CASE WHEN content IS NOT NULL THEN try(decode(content)) END AS text"
    key = ", ".join(KEY)
    database.execute(_SHOWN.format(texts=texts, shown=", ".join([key, *shown]), key=key))
    database.execute(_CONVERSATIONS)
    _segments(database, found)


def _over(name: str, files: Sequence[str], by_day: bool) -> str:
    beside = {"day": "DATE", "bucket": "INTEGER"} if by_day else {}
    if not files:
        empty = ", ".join(
            f"NULL::{kind} AS {column}"
            for column, kind in (COLUMNS | beside | {"run": "INTEGER"}).items()
        )
        return f"CREATE VIEW {name} AS SELECT {empty} WHERE false"
    options = "hive_partitioning = false"
    if by_day:
        options = "hive_types = {'day': DATE, 'bucket': INTEGER}, hive_partitioning = true"
    listed = ", ".join(map(quoted, files))
    run = "CAST(left(parse_filename(filename), 6) AS INTEGER) AS run"
    return (
        f"CREATE VIEW {name} AS SELECT * EXCLUDE (filename), {run} "
        f"FROM read_parquet([{listed}], filename = true, {options})"
    )


def _segments(database: Any, found: Sequence[Segment]) -> None:
    database.execute(
        "CREATE TABLE segments (file VARCHAR, kind VARCHAR, run INTEGER, idc VARCHAR, "
        "messages UBIGINT, conversations UBIGINT, erased UBIGINT, bytes UBIGINT, sha256 VARCHAR, "
        "after_hlc UBIGINT, until_hlc UBIGINT)"
    )
    rows = [
        (
            f"{s.folder}/{s.file}", s.kind, s.run, s.idc, s.messages, s.conversations, s.erased,
            s.size, s.sha256, s.after, s.until,
        )
        for s in found
    ]  # fmt: skip
    if rows:
        database.executemany(f"INSERT INTO segments VALUES ({', '.join('?' * 11)})", rows)
