"""An archive's files: written, killed half way, queried, and without what was recalled."""

from __future__ import annotations

import random
import resource
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from imcore.convert import key_pb, origin_pb, place_pb
from imcore.errors import BadInput, Damaged, ImError, Unavailable
from imcore.hlc import from_ms
from imcore.proto import peer_pb2 as peer
from imcore.words import ClientKey, Origin, Place
from imctl.archive import layout, query, store
from imctl.archive.layout import Segment, State
from imctl.archive.store import Archive
from imctl.commands import archive as command
from imctl.errors import Failed
from services.engines.disk import RealDisk

FRA = Origin("fra", 1)
DAY_MS = 86_400_000
NOON_MS = 20_000 * DAY_MS + DAY_MS // 2
ANN, GROUP = "d:ann:bob", "g:team"


def message(
    cid: int, content: bytes = b"", conversation: str = ANN, days: int = 0, **fields: Any
) -> peer.ArchivedMessage:
    hlc = from_ms(NOON_MS + days * DAY_MS + cid)
    key = key_pb(ClientKey("ann", "phone", "o1", conversation, cid))
    made = peer.ArchivedMessage(key=key, place=place_pb(Place(hlc, FRA, cid)), accepted=hlc)
    made.origin.CopyFrom(origin_pb(FRA))
    made.seq, made.composed_ms = cid, NOON_MS
    made.content = content or b"text %d" % cid
    made.content_hash = b"h" * 16
    for name, value in fields.items():
        setattr(made, name, value)
    if made.recalled:
        made.content = made.content_hash = b""
    return made


def wrote(folder: Path, until: int, *messages: peer.ArchivedMessage) -> list[Segment]:
    with Archive(folder, "demo") as archive:
        archive.add(messages)
        written = archive.write("fra", until, {"fra.1": [7]})
        archive.erase()
        return written


def asked(folder: Path, sql: str) -> list[Sequence[Any]]:
    return list(query.run(folder, sql).rows())


def files(folder: Path) -> dict[str, bytes]:
    found = {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    found.pop("lock")
    return found


def test_files_are_by_day_and_conversation_and_their_manifests_say_what_is_in_them(
    tmp_path: Path,
) -> None:
    written = wrote(
        tmp_path, 99, message(1), message(2), message(3, days=1), message(4, b"x", GROUP)
    )
    assert sorted(written, key=lambda s: s.folder) == store.segments(tmp_path, 1)
    assert len({segment.folder for segment in written}) == 3
    [first] = [s for s in written if s.messages == 2]
    assert first.folder.startswith("messages/day=2024-10-04/bucket=")
    assert (first.run, first.idc, first.after, first.until) == (1, "fra", 0, 99)
    assert (first.conversations, first.applied) == (1, {"fra.1": [7]})
    part = first.origins["fra.1"]
    assert (part.messages, part.first, part.last) == (2, from_ms(NOON_MS + 1), from_ms(NOON_MS + 2))
    assert store.wrong(tmp_path, written) == []
    assert (tmp_path / first.folder).stat().st_mode & 0o077 == 0
    path = tmp_path / first.folder / first.file
    path.write_bytes(path.read_bytes()[:-1])
    assert store.wrong(tmp_path, written) == [
        f"{first.folder}/{first.file} is not what its manifest says"
    ]
    path.unlink()
    assert store.wrong(tmp_path, written) == [f"{first.folder}/{first.file} is missing"]


def test_queries_see_messages_as_they_are_now_and_recalled_ones_without_content(
    tmp_path: Path,
) -> None:
    wrote(tmp_path, 10, *(message(n) for n in range(1, 5)), message(5, b"\xff\xfe"))
    edit = message(1, b"edited", edited=True, again=True)
    wrote(tmp_path, 20, message(6), edit, edit, message(2, recalled=True, again=True))
    wrote(tmp_path, 30, message(1, b"edited twice", edited=True, again=True))
    shown = asked(tmp_path, "select cid, text, edited, recalled from messages order by place_hlc")
    assert shown == [
        (1, "edited twice", True, False), (2, None, False, True), (3, "text 3", False, False),
        (4, "text 4", False, False), (5, None, False, False), (6, "text 6", False, False),
    ]  # fmt: skip
    assert asked(tmp_path, "from messages select content where cid in (2, 5) order by cid") == [
        (None,), (b"\xff\xfe",),
    ]  # fmt: skip
    assert asked(tmp_path, "select conversation, messages, senders from conversations") == [
        (ANN, 6, 1)
    ]
    [(count, bytes_)] = asked(
        tmp_path, "select sum(messages), sum(bytes) from segments where run = 1"
    )
    assert count == 5 and bytes_ > 0


def test_what_is_recalled_is_out_of_every_file_after_the_run_that_tells_it(tmp_path: Path) -> None:
    """Its edits too. Content is looked for in what the files hold, since they are compressed."""
    wrote(tmp_path, 10, message(1, b"secret"), message(2))
    wrote(tmp_path, 20, message(1, b"secret edit", edited=True, again=True))
    with Archive(tmp_path, "demo") as archive:
        archive.add([message(1, recalled=True, again=True)])
        archive.write("fra", 30, {})
        # Killed here: the next run does what was left to do.
    assert asked(tmp_path, "select text from messages order by cid") == [(None,), ("text 2",)]
    assert "secret" in str(held(tmp_path))
    with Archive(tmp_path, "demo") as archive:
        assert archive.erase() == 2
        assert archive.erase() == 0
    assert "secret" not in str(held(tmp_path)) and "text 2" in str(held(tmp_path))
    every = store.segments(tmp_path, 3)
    assert store.wrong(tmp_path, every) == []
    assert {s.run: s.erased for s in every} == {1: 1, 2: 1, 3: 1}
    named = {f"{s.folder}/{s.file}" for s in every}
    assert {name for name in files(tmp_path) if name.endswith(".parquet")} == named
    assert asked(tmp_path, "select text from messages order by cid") == [(None,), ("text 2",)]


def held(folder: Path) -> list[Any]:
    every = str(folder / "**" / "*.parquet")
    return list(store.duckdb().read_parquet(every).fetchall())


class Killed(Exception):
    pass


def test_a_run_that_is_killed_counts_for_nothing_and_is_done_again(tmp_path: Path) -> None:
    killed_at_each(tmp_path, 9)


@pytest.mark.nightly
def test_a_run_may_be_killed_anywhere(tmp_path: Path) -> None:
    killed_at_each(tmp_path, 1)


def killed_at_each(tmp_path: Path, stride: int) -> None:
    """At every ``stride``-th of the writes."""
    second = [message(3), message(4, days=1), message(1, recalled=True, again=True)]
    wrote(tmp_path / "first", 10, message(1), message(2, days=1))
    shutil.copytree(tmp_path / "first", tmp_path / "whole")
    wrote(tmp_path / "whole", 20, *second)
    everything = "select * from messages order by all"
    before, wanted = (asked(tmp_path / name, everything) for name in ("first", "whole"))
    steps = 0
    while True:
        folder = tmp_path / f"killed{steps}"
        shutil.copytree(tmp_path / "first", folder)
        if not killed_after(folder, steps, second):
            break
        now = store.state(folder)
        assert now is not None
        assert asked(folder, everything) == (before if now.run == 1 else wanted)
        with Archive(folder, "demo") as archive:
            if now.run == 1:
                archive.add(second)
                archive.write("fra", 20, {})
            archive.erase()
        assert asked(folder, everything) == wanted
        assert store.wrong(folder, store.segments(folder, 2)) == []
        assert len(files(folder)) == len(files(tmp_path / "whole"))
        steps += stride
    assert steps > 20


def killed_after(folder: Path, steps: int, messages: list[peer.ArchivedMessage]) -> bool:
    """Whether there were that many writes; renames and whole writes count."""
    left = steps

    def step() -> None:
        nonlocal left
        if not left:
            raise Killed
        left -= 1

    with pytest.MonkeyPatch.context() as patch:
        for name in ("rename", "write_whole", "sync_folder"):
            real = getattr(RealDisk, name)

            def stepped(self: Any, *arguments: Any, _real: Any = real) -> Any:
                step()
                return _real(self, *arguments)

            patch.setattr(RealDisk, name, stepped)
        try:
            wrote(folder, 20, *messages)
        except Killed:
            return True
    return False


def test_every_folder_is_durable_before_its_run_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The manifests in a folder that a power loss took would be missed by nobody."""
    folder, synced, counted = tmp_path / "of" / "demo", set[Path](), []
    sync, whole = RealDisk.sync_folder, RealDisk.write_whole

    def synced_too(self: RealDisk, path: str) -> None:
        synced.add(Path(path))
        sync(self, path)

    def whole_too(self: RealDisk, path: str, data: bytes) -> None:
        if path == str(folder / layout.STATE):
            made = [p for p in tmp_path.rglob("*") if p.is_dir() and p.name != "stage"]
            assert {p.parent for p in made} <= synced
            counted.append(len(made))
        whole(self, path, data)

    monkeypatch.setattr(RealDisk, "sync_folder", synced_too)
    monkeypatch.setattr(RealDisk, "write_whole", whole_too)
    wrote(folder, 10, message(1), message(2, days=1))
    wrote(folder, 20, message(3, days=2), message(1, recalled=True, again=True))
    assert counted == [7, 7, 10, 10]


def test_what_is_deleted_does_not_come_back_with_power(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a killed run left, and would count as part of the next one, and what was recalled."""
    wrote(tmp_path, 10, message(1))
    assert killed_after(tmp_path, 12, [message(2, days=1), message(3, days=2)])
    left = {p for p in tmp_path.rglob("000002.*") if p.is_file()}
    assert left
    gone, checked = set[Path](), []
    sync, whole, unlink = RealDisk.sync_folder, RealDisk.write_whole, Path.unlink

    def unlinked(self: Path, missing_ok: bool = False) -> None:
        unlink(self, missing_ok)
        if "stage" not in self.parts:
            gone.add(self)

    def synced(self: RealDisk, path: str) -> None:
        sync(self, path)
        for each in [each for each in gone if each.parent == Path(path)]:
            gone.remove(each)
            checked.append(each)

    def counts(self: RealDisk, path: str, data: bytes) -> None:
        if path == str(tmp_path / layout.STATE):
            assert gone == set()
        whole(self, path, data)

    monkeypatch.setattr(Path, "unlink", unlinked)
    monkeypatch.setattr(RealDisk, "sync_folder", synced)
    monkeypatch.setattr(RealDisk, "write_whole", counts)
    [one] = store.segments(tmp_path, 1)
    wrote(tmp_path, 20, message(1, recalled=True, again=True))
    assert set(checked) == left | {tmp_path / one.folder / one.file}


@pytest.mark.parametrize("part", [0.1, 0.5, 0.99, None])
def test_a_damaged_file_is_not_written_anew_as_if_it_were_whole(
    tmp_path: Path, part: float | None
) -> None:
    [one] = wrote(tmp_path, 10, *(message(cid) for cid in range(1, 50)))
    [other] = wrote(tmp_path, 20, message(50, conversation=GROUP))
    path = tmp_path / one.folder / one.file
    data = bytearray(path.read_bytes())
    if part is None:
        del data[len(data) // 2 :]
    else:
        data[int(part * len(data))] ^= 1
    path.write_bytes(data)
    name = f"{one.folder}/{one.file}"
    gone = [
        message(1, recalled=True, again=True),
        message(50, conversation=GROUP, recalled=True, again=True),
    ]
    with pytest.raises(Damaged, match=f"{name} is not what its manifest says"):
        wrote(tmp_path, 30, *gone)
    now = store.state(tmp_path)
    assert now is not None
    assert (now.run, now.erased) == (3, 2)
    every = store.segments(tmp_path, now.run)
    assert store.wrong(tmp_path, every) == [f"{name} is not what its manifest says"]
    # What can be left out is; the rest once that file is there again.
    assert not (tmp_path / other.folder / other.file).exists()
    data = bytearray(path.read_bytes())
    if part is not None:
        data[int(part * len(data))] ^= 1
        path.write_bytes(data)
        with Archive(tmp_path, "demo") as archive:
            assert archive.erase() == 1
        assert asked(tmp_path, "select count(*) from messages where recalled") == [(2,)]


def test_a_full_disk_is_one_sentence_and_the_run_is_done_again(tmp_path: Path) -> None:
    wrote(tmp_path, 10, message(1))
    many = [message(cid, random.Random(cid).randbytes(4_000)) for cid in range(2, 600)]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        with pytest.raises(Failed, match=r"cannot be written: .*File too large"):
            resource.setrlimit(resource.RLIMIT_FSIZE, (600_000, hard))
            with Archive(tmp_path, "demo") as archive:
                for each in many:
                    archive.add([each])
                    archive._flush()
                archive.write("fra", 700, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert asked(tmp_path, "select count(*) from messages") == [(1,)]
    wrote(tmp_path, 700, *many)
    assert asked(tmp_path, "select count(*) from messages") == [(599,)]


def test_large_messages_are_staged_before_they_fill_the_memory(tmp_path: Path) -> None:
    with Archive(tmp_path, "demo") as archive:
        most = 0
        for cid in range(1, 50):
            archive.add([message(cid, b"x" * 1_000_000)])
            most = max(most, sum(map(len, archive._waiting)))
        assert most < 32 << 20
        [segment] = archive.write("fra", 300, {})
    assert segment.messages == 49


@pytest.mark.parametrize(
    ("sql", "words"),
    [
        ("delete from segments", "expected one select, got delete"),
        ("select 1; select 2", "expected one select, got select, select"),
        ("", "expected one select, got nothing"),
        ("copy messages to '/tmp/x.csv'", "expected one select, got copy"),
        ("set threads = 1", "expected one select, got set"),
        ("attach '/tmp/x.db'", "expected one select, got attach"),
        ("with x as (insert into segments select * from segments returning 1) from x", "read-only"),
        ("selec text from messages", "syntax error"),
        ("select nothing from messages", '"nothing" not found'),
        ("select * from read_csv('/etc/passwd')", "Cannot access file"),
        ("select * from glob('/etc/*')", "Cannot access"),
        ("select * from folder", "folder does not exist"),
        ("select cast(text as integer) from messages", "Could not convert"),
    ],
)
def test_nothing_but_a_select_from_the_archive_is_answered(
    tmp_path: Path, sql: str, words: str
) -> None:
    wrote(tmp_path, 10, message(1))
    with pytest.raises(BadInput) as refused:
        asked(tmp_path, sql)
    assert words in str(refused.value)
    assert "\n" not in str(refused.value)


def test_an_archive_that_is_missing_damaged_in_use_or_another_regions_is_said_so(
    tmp_path: Path,
) -> None:
    with pytest.raises(Failed, match="there is no archive"):
        query.run(tmp_path, "select 1")
    with pytest.raises(Failed, match="there is no archive"):
        command.archive(verify=True, folder=tmp_path)
    wrote(tmp_path, 10)
    assert asked(tmp_path, "select count(*) from messages") == [(0,)]
    with Archive(tmp_path, "demo"), pytest.raises(Unavailable, match="in use"):
        Archive(tmp_path, "demo")
    with pytest.raises(BadInput, match="the archive of the region demo"):
        Archive(tmp_path, "other")
    [segment] = wrote(tmp_path, 20, message(1))
    (tmp_path / segment.folder / segment.file).unlink()
    with pytest.raises(ImError, match="cannot be read"):
        asked(tmp_path, "select * from messages")
    (tmp_path / layout.STATE).write_text("{}")
    with pytest.raises(Damaged):
        query.run(tmp_path, "select 1")


def test_what_is_written_down_is_read_again() -> None:
    state = State("demo", 3, 1 << 60, 2)
    assert State.parse(state.dump()) == state
    with pytest.raises(Damaged, match="format 2"):
        State.parse(state.dump().replace(b'"format": 1', b'"format": 2'))
    with pytest.raises(Damaged):
        Segment.parse(b'{"format": 1, "origins": {}}', "000001.json")
    assert [layout.run_of(name) for name in ("000012.json", "000012-000013.parquet", "lock")] == [
        12, 12, None,
    ]  # fmt: skip
