"""The audit chain under attack: whatever is done to a file, the first break is found and named."""

from __future__ import annotations

import asyncio
import json
import logging
import multiprocessing
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imcore import auditfile
from imcore.audit import (
    EMPTY,
    HASH_BYTES,
    SUFFIX,
    Anchor,
    against,
    anchor_from_json,
    parse,
    seal,
    torn,
    verify,
)
from imcore.auditfile import append, kept
from imctl.audit import own_writer, writer_of
from services.control import anchoring
from services.control.anchoring import NOTHING_JUDGED, Broken, Judged, anchored, raised

EVENTS = [{"at_ms": 1_000 + n, "sentence": f"drain of fra, {n}"} for n in range(6)]


@pytest.fixture
def small_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two events each; asked for before ``chain``."""
    monkeypatch.setattr(auditfile, "FULL_BYTES", 200)


@pytest.fixture
def chain(tmp_path: Path) -> Path:
    path = tmp_path / "audit.jsonl"
    for event in EVENTS:
        append(path, "fra", event)
    return path


def lines(path: Path) -> list[bytes]:
    return path.read_bytes().splitlines(keepends=True)


def problem(path: Path, anchor: Anchor | None = None) -> str:
    return verify(path.read_bytes(), "fra", anchor).problem


def head(path: Path) -> Anchor:
    return verify(path.read_bytes(), "fra").head


def test_a_chain_that_nobody_touched_is_whole(chain: Path) -> None:
    found = verify(chain.read_bytes(), "fra", head(chain))
    assert (found.problem, found.tail, found.torn, found.head.seq) == ("", b"", 0, 6)
    rows = [{"at_ms": row["at_ms"], "sentence": row["sentence"]} for row in found.rows]
    assert rows == EVENTS
    assert [row["seq"] for row in found.rows] == [1, 2, 3, 4, 5, 6]


def test_each_line_is_what_the_document_says_it_is(chain: Path) -> None:
    """Checked here without our own code, as somebody else would."""
    import hashlib

    before = "0" * 64
    for raw in chain.read_text().splitlines():
        body, _, rest = raw.rpartition(',"hash":')
        assert rest == f'"{hashlib.sha256((before + body).encode()).hexdigest()}"}}'
        before = json.loads(raw)["hash"]


def test_an_edited_line_is_found(chain: Path) -> None:
    chain.write_bytes(chain.read_bytes().replace(b"fra, 2", b"iad, 2"))
    assert problem(chain).startswith("edited: line 3 (event 3)")


def test_an_edited_line_with_a_hash_that_fits_breaks_the_next(chain: Path) -> None:
    kept_lines = lines(chain)
    second = parse(kept_lines[1].rstrip())
    assert second is not None
    kept_lines[2] = seal({"at_ms": 1_002, "sentence": "nothing"}, "fra", second.anchor)
    chain.write_bytes(b"".join(kept_lines))
    assert problem(chain).startswith("edited: line 4 (event 4)")


def test_a_removed_line_is_found(chain: Path) -> None:
    chain.write_bytes(b"".join(lines(chain)[:2] + lines(chain)[3:]))
    assert problem(chain) == "removed: event 3 is missing before line 3"


def test_removed_first_lines_are_found(chain: Path) -> None:
    chain.write_bytes(b"".join(lines(chain)[2:]))
    assert problem(chain) == "removed: events 1 to 2 are missing before line 1"


def test_swapped_lines_are_found(chain: Path) -> None:
    first, second, third, *rest = lines(chain)
    chain.write_bytes(b"".join([first, third, second, *rest]))
    assert problem(chain) == "reordered: event 3 stands in line 2, before event 2"


def test_a_line_that_stands_twice_is_found(chain: Path) -> None:
    chain.write_bytes(chain.read_bytes() + lines(chain)[1])
    assert problem(chain) == "reordered: event 2 stands in line 7, behind event 6"


def test_rubbish_between_lines_is_found(chain: Path) -> None:
    first, *rest = lines(chain)
    chain.write_bytes(b"".join([first, b"{}\n", *rest]))
    assert problem(chain) == "edited: line 2 is no line of an audit log"


HEX = "0" * 63
PLANTED = {
    "a list": f'[{{"seq":1,"hash":"{HEX}"}}]',
    "a hash within": f'{{"seq":7,"writer":"fra","a":{{"b":1,"hash":"{HEX}"}}}}',
    "no number": f'{{"seq":true,"writer":"fra","hash":"{HEX}0"}}',
    "text that nobody can show": f'{{"seq":7,"writer":"\\ud800","hash":"{HEX}0"}}',
    "much in each other": f'{{"seq":7,"writer":"fra","a":{"[" * 500}{"]" * 500},"hash":"{HEX}0"}}',
    "endless": f'{{"seq":7,"writer":"fra","a":{"[" * 99_999},"hash":"{HEX}0"}}',
}


@pytest.mark.parametrize("planted", PLANTED.values(), ids=PLANTED)
def test_a_planted_line_is_found_and_keeps_nobody_from_going_on(
    chain: Path, planted: str, tmp_path: Path
) -> None:
    with chain.open("ab") as file:
        file.write(planted.encode() + b"\n")
    assert problem(chain) == "edited: line 7 is no line of an audit log"
    assert append(chain, "fra", EVENTS[0]).seq == 8  # behind a note of what is no line
    assert problem(chain) == ""
    # And as the first line of a file.
    path = tmp_path / "planted.jsonl"
    path.write_bytes(planted.encode() + b"\n")
    assert problem(path) == "edited: line 1 is no line of an audit log"
    assert writer_of(path) == own_writer()
    assert append(path, "fra", EVENTS[0]).seq == 2


@pytest.mark.parametrize(
    "body", [b'{"seq":7,"writer":"w","said":"\xed\xa0\x80"', b'{"seq":7,"writer":"w","said":"\xff"']
)
def test_bytes_that_are_no_text_are_no_line(chain: Path, body: bytes) -> None:
    with chain.open("ab") as file:
        file.write(body + SUFFIX + b"0" * HASH_BYTES + b'"}\n')
    assert problem(chain) == "edited: line 7 is no line of an audit log"
    assert append(chain, "fra", EVENTS[0]).seq == 8


def test_events_that_could_not_be_read_back_are_refused(chain: Path) -> None:
    deep: list[object] = []
    for _ in range(500):
        deep = [deep]
    for event in ({"deep": deep}, {"sentence": "\ud800"}, {"sentence": {1, 2}}):
        with pytest.raises(ValueError):
            append(chain, "fra", event)
    assert (problem(chain), head(chain).seq) == ("", 6)


def test_a_cut_tail_is_found_with_the_anchor_alone(chain: Path) -> None:
    anchor = head(chain)
    chain.write_bytes(b"".join(lines(chain)[:4]))
    assert problem(chain) == ""
    cut = "truncated: it ends at event 4, but the registries know event 6"
    assert problem(chain, anchor) == cut
    chain.write_bytes(b"")
    assert "ends at event 0" in problem(chain, anchor)


def test_a_tail_that_is_cut_within_a_line_is_found(chain: Path) -> None:
    anchor = head(chain)
    chain.write_bytes(chain.read_bytes()[:-40])
    assert problem(chain, anchor).startswith("truncated: it ends at event 5")
    append(chain, "fra", EVENTS[0])  # passes for a crash, but event 6 is another now
    assert problem(chain) == ""
    assert problem(chain, anchor).startswith("rewritten: event 6")


def test_a_chain_that_was_written_anew_is_found(chain: Path) -> None:
    anchor = head(chain)
    chain.unlink()
    for event in (*EVENTS, *EVENTS):
        append(chain, "fra", {**event, "sentence": "nothing happened"})
    assert problem(chain) == ""
    assert problem(chain, anchor).startswith("rewritten: event 6")


def test_the_chain_of_another_is_found(chain: Path) -> None:
    assert verify(chain.read_bytes(), "iad").problem.startswith("another's file: line 1 is by fra")


def test_an_anchor_is_not_raised_over_a_cut(chain: Path) -> None:
    """Else one more event behind the cut would hide it."""
    anchor = raised(None, verify(chain.read_bytes(), "fra"))
    assert anchor == head(chain)
    chain.write_bytes(b"".join(lines(chain)[:4]))
    for event in EVENTS:
        append(chain, "fra", event)
    with pytest.raises(Broken, match="rewritten: event 6"):
        raised(anchor.to_json(), verify(chain.read_bytes(), "fra"))


@given(st.data())
def test_no_byte_of_a_chain_can_be_changed(data: st.DataObject) -> None:
    written, at = b"", EMPTY
    for event in EVENTS[:3]:
        line = seal(event, "fra", at)
        parsed = parse(line.rstrip())
        assert parsed is not None
        written, at = written + line, parsed.anchor
    place = data.draw(st.integers(0, len(written) - 1))
    byte = data.draw(st.integers(0, 255).filter(lambda value: value != written[place]))
    changed = written[:place] + bytes([byte]) + written[place + 1 :]
    assert verify(written, "fra", at).problem == ""
    assert verify(changed, "fra", at).problem


# ---------------------------------------------------------------------------------- crashes


@pytest.mark.parametrize("left", [1, 20, 90, -2])
def test_a_torn_line_is_noted_and_its_bytes_stay(chain: Path, left: int) -> None:
    remains = seal({"sentence": "never whole"}, "fra", head(chain))[:-1][:left]
    with chain.open("ab") as file:
        file.write(remains)
    assert verify(chain.read_bytes(), "fra").tail == remains
    append(chain, "fra", EVENTS[0])
    found = verify(chain.read_bytes(), "fra")
    assert (found.problem, found.torn, found.tail) == ("", 1, b"")
    assert remains in chain.read_bytes()
    assert found.rows[-2]["torn"] == torn(remains)["torn"]
    assert found.rows[-1]["sentence"] == EVENTS[0]["sentence"]
    # What was noted cannot be changed either.
    chain.write_bytes(chain.read_bytes().replace(remains + b"\n", b"x" * len(remains) + b"\n"))
    assert problem(chain) == "edited: line 7 is no line of an audit log"


@pytest.mark.parametrize("left", range(1, 60, 7))
def test_a_crash_while_a_torn_line_is_noted_is_noted_too(chain: Path, left: int) -> None:
    with chain.open("ab") as file:
        file.write(b'{"seq":7,"wri')
        file.write((b"\n" + seal(torn(b'{"seq":7,"wri'), "fra", head(chain)))[:left])
    append(chain, "fra", EVENTS[0])
    append(chain, "fra", EVENTS[1])
    found = verify(chain.read_bytes(), "fra")
    assert (found.problem, found.torn, found.head.seq) == ("", 1, 9)


def test_a_first_line_that_is_torn_is_noted(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    path.write_bytes(b'{"seq"')
    append(path, "fra", EVENTS[0])
    assert (problem(path), head(path).seq) == ("", 2)


def test_a_line_that_lacks_only_its_newline_is_whole(chain: Path) -> None:
    chain.write_bytes(chain.read_bytes()[:-1])
    assert (problem(chain), head(chain).seq) == ("", 6)
    append(chain, "fra", EVENTS[0])
    found = verify(chain.read_bytes(), "fra")
    assert (found.problem, found.torn, found.head.seq) == ("", 0, 7)


# ---------------------------------------------------------------------------------- writers


def write_many(path: str, count: int) -> None:
    for number in range(count):
        append(Path(path), "imctl", {"at_ms": number, "pid": os.getpid()})


def test_processes_that_write_at_once_make_one_chain(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many, args=(str(path), 20)) for _ in range(3)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
    found = verify(path.read_bytes(), "imctl")
    assert (found.problem, found.head.seq) == ("", 60)


def test_a_full_file_is_put_aside_and_the_chain_goes_over_all_of_them(
    tmp_path: Path, small_files: None
) -> None:
    path = tmp_path / "audit.jsonl"
    for event in EVENTS:
        at = append(path, "fra", event)
    names = [file.name for file in auditfile.files(path)]
    assert names == ["audit-000000000002.jsonl", "audit-000000000004.jsonl", "audit.jsonl"]
    assert all(file.stat().st_mode & 0o777 == 0o600 for file in auditfile.files(path))
    found = verify(auditfile.read(path), "fra", at)
    assert (found.problem, found.head) == ("", at)
    assert [row["seq"] for row in found.rows] == [1, 2, 3, 4, 5, 6]
    assert auditfile.size(path) == len(auditfile.read(path))
    # One of them gone, changed, or in another's place is found as lines are.
    first, second, _ = auditfile.files(path)
    held = second.read_bytes()
    second.unlink()
    assert verify(auditfile.read(path), "fra").problem.startswith("removed: events 3 to 4")
    second.write_bytes(held.replace(b"fra, 2", b"iad, 2"))
    assert verify(auditfile.read(path), "fra").problem.startswith("edited: line 3 (event 3)")
    second.write_bytes(first.read_bytes())
    assert verify(auditfile.read(path), "fra").problem.startswith("reordered: event 1")
    second.write_bytes(held)
    path.unlink()
    cut = "truncated: it ends at event 4, but the registries know event 6"
    assert verify(auditfile.read(path), "fra", at).problem == cut


def test_a_crash_after_a_file_was_put_aside_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "audit.jsonl"
    for event in EVENTS:
        append(path, "fra", event)
    path.rename(tmp_path / "audit-000000000006.jsonl")
    assert verify(auditfile.read(path), "fra").head.seq == 6
    assert append(path, "fra", EVENTS[0]).seq == 7
    # Nor does one that tears the first line of the next.
    monkeypatch.setattr(auditfile, "FULL_BYTES", 1)
    append(path, "fra", EVENTS[1])
    path.write_bytes(b'{"seq":8,')
    append(path, "fra", EVENTS[1])
    found = verify(auditfile.read(path), "fra")
    assert (found.problem, found.torn, found.head.seq) == ("", 1, 9)


def test_a_file_is_not_put_aside_in_the_middle_of_a_line_or_over_another(
    chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditfile, "FULL_BYTES", 1)
    with chain.open("ab") as file:
        file.write(b'{"seq":7,"wri')
    append(chain, "fra", EVENTS[0])
    assert auditfile.files(chain) == [chain]
    in_the_way = chain.with_name("audit-000000000008.jsonl")
    in_the_way.write_bytes(b"somebody's\n")
    assert append(chain, "fra", EVENTS[1]).seq == 9
    assert in_the_way.read_bytes() == b"somebody's\n"


def write_many_small(path: str, count: int) -> None:
    auditfile.FULL_BYTES = 500
    write_many(path, count)


def test_processes_that_write_at_once_put_files_aside_once(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    context = multiprocessing.get_context("spawn")
    writers = [context.Process(target=write_many_small, args=(str(path), 20)) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert verify(auditfile.read(path), "imctl").problem == "", "read while it is written"
    found = verify(auditfile.read(path), "imctl")
    assert (found.problem, found.head.seq) == ("", 60)
    assert len(auditfile.files(path)) > 10


def test_long_lines_are_read_back(tmp_path: Path) -> None:
    path = tmp_path / "audit.jsonl"
    for size in (10, 70_000, 200_000, 10):
        append(path, "fra", {"sentence": "x" * size})
    assert (problem(path), head(path).seq) == ("", 4)


def test_the_file_is_its_owners_alone(chain: Path) -> None:
    assert chain.stat().st_mode & 0o777 == 0o600


def test_an_event_cannot_name_its_own_writer() -> None:
    with pytest.raises(ValueError, match="'writer'"):
        seal({"writer": "iad"}, "fra", EMPTY)


def test_events_of_the_logger_are_kept_and_a_failure_is_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    logger = logging.getLogger(auditfile.LOGGER)
    path = tmp_path / "audit.jsonl"
    with kept(path, "fra", {"user": "ann"}):
        logger.info("%s", json.dumps({"at_ms": 1, "sentence": "done"}))
    assert [row["user"] for row in verify(path.read_bytes(), "fra").rows] == ["ann"]
    with kept(tmp_path / "missing" / "audit.jsonl", "fra"):
        logger.info("%s", json.dumps({"at_ms": 2, "sentence": "done"}))
    assert "an audit event could not be written" in caplog.text


def test_an_event_that_cannot_be_written_costs_no_later_one(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """They are written by a thread, which nobody would start again."""
    logger = logging.getLogger(auditfile.LOGGER)
    path = tmp_path / "audit.jsonl"
    with kept(path, "fra"):
        logger.info("no JSON")
        logger.info("%s", json.dumps(["no object"]))
        logger.info("%s", json.dumps({"seq": 7}))
        logger.info("%s", json.dumps({"at_ms": 1, "sentence": "done"}))
    assert [row["sentence"] for row in verify(path.read_bytes(), "fra").rows] == ["done"]
    assert caplog.text.count("an audit event could not be written") == 3


def test_on_a_slow_disk_many_events_are_made_durable_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One at a time they came faster than they were written: they waited in memory without end,
    and the process could not stop before each had its own fsync."""
    logger, path = logging.getLogger(auditfile.LOGGER), tmp_path / "audit.jsonl"
    synced: list[int] = []

    def slow(descriptor: int) -> None:
        synced.append(descriptor)
        time.sleep(0.01)

    monkeypatch.setattr(os, "fsync", slow)
    with kept(path, "fra"):
        for number in range(500):
            event = {"at_ms": number} if number % 100 else {"seq": "refused"}
            logger.info("%s", json.dumps(event))
    found = verify(path.read_bytes(), "fra")
    wanted = [number for number in range(500) if number % 100]
    assert (found.problem, [row["at_ms"] for row in found.rows]) == ("", wanted)
    assert len(synced) < 250


async def test_own_events_alone_are_kept_beside_others(tmp_path: Path) -> None:
    logger = logging.getLogger(auditfile.LOGGER)
    both = asyncio.Barrier(2)

    async def work(name: str) -> None:
        with kept(tmp_path / name, name, own=True):
            await both.wait()
            logger.info("%s", json.dumps({"at_ms": 1, "sentence": name}))
            await both.wait()

    await asyncio.gather(work("fra"), work("dub"))
    for name in ("fra", "dub"):
        rows = verify((tmp_path / name).read_bytes(), name).rows
        assert [row["sentence"] for row in rows] == [name]


def test_strange_anchors_are_value_errors() -> None:
    assert anchor_from_json(Anchor(3, "ab").to_json()) == Anchor(3, "ab")
    strange = (b"[]", b"{}", b'{"seq": "x", "hash": ""}', b'{"seq": 1e400, "hash": ""}')
    never = (b'{"seq": -2, "hash": ""}', b'{"seq": 1.5, "hash": ""}', b'{"seq": true, "hash": ""}')
    for data in (b"", *strange, *never, b"[" * 99_999):
        with pytest.raises(ValueError):
            anchor_from_json(data)
    assert against(verify(b"", "fra"), EMPTY) == ""


def test_the_end_of_a_chain_is_judged_alone(chain: Path) -> None:
    first = len(b"".join(lines(chain)[:4]))
    fourth = Anchor(4, json.loads(lines(chain)[3])["hash"])
    found = verify(auditfile.read(chain, first), "fra", head(chain), behind=fourth)
    assert (found.problem, found.head, len(found.rows)) == ("", head(chain), 2)
    assert against(found, fourth) == ""
    third = Anchor(3, json.loads(lines(chain)[2])["hash"])
    assert against(found, third).startswith("not judged: event 3")
    assert against(found, Anchor(7, "0" * 64)).startswith("truncated")


def test_a_chain_over_several_files_is_read_from_anywhere(small_files: None, chain: Path) -> None:
    whole = auditfile.read(chain)
    assert len(auditfile.files(chain)) > 2
    for start in range(0, len(whole) + 50, 7):
        assert auditfile.read(chain, start) == whole[start:]


class Register:
    """The one key of a proposer that an anchor needs."""

    value: bytes | None = None

    async def change(self, key: str, change: Callable[[bytes | None], bytes]) -> bytes:
        self.value = change(self.value)
        return self.value


async def test_a_look_reads_what_is_new_and_all_of_it_where_that_does_not_fit(
    chain: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    register, read = Register(), []

    def noted(path: Path, start: int = 0, most: int | None = None) -> bytes:
        read.append(start)
        return original(path, start, most)

    original = auditfile.read
    monkeypatch.setattr(auditfile, "read", noted)

    async def look(before: Judged) -> Judged:
        return await anchored(register, chain, "fra", before)  # type: ignore[arg-type]

    judged = await look(NOTHING_JUDGED)
    assert judged.at == len(b"".join(lines(chain)[:-1]))
    append(chain, "fra", EVENTS[0])
    later = await look(judged)
    assert read == [0, judged.at] and later.at > judged.at
    assert anchor_from_json(register.value or b"") == head(chain)
    await asyncio.to_thread(os.truncate, chain, later.at)
    read.clear()
    with pytest.raises(Broken, match="truncated"):
        await look(later)
    assert read == [later.at, 0, 0]


@pytest.mark.parametrize("piece", [1, 150, 400, 1_000, 1 << 20])
@pytest.mark.parametrize("broken", [False, True])
def test_a_chain_is_judged_a_piece_at_a_time_as_at_once(
    chain: Path, monkeypatch: pytest.MonkeyPatch, piece: int, broken: bool
) -> None:
    """A chain of a million events, all of them in memory at once, took 2.6 GB at each start."""
    with chain.open("ab") as file:
        file.write(b'{"seq":7,\n"to')  # a crash, twice
    for event in EVENTS * 3:
        append(chain, "fra", event)
    if broken:
        chain.write_bytes(chain.read_bytes().replace(b"of fra, 4", b"of fra, 9"))
    monkeypatch.setattr(anchoring, "PIECE_BYTES", piece)
    sizes: list[int] = []

    def noted(path: Path, start: int = 0, most: int | None = None) -> bytes:
        sizes.append(len(read(path, start, most)))
        return read(path, start, most)

    read = auditfile.read
    monkeypatch.setattr(auditfile, "read", noted)
    at_once = verify(chain.read_bytes(), "fra")
    found, judged = anchoring._judge(chain, "fra", NOTHING_JUDGED)
    assert (found.head, found.problem) == (at_once.head, at_once.problem)
    assert bool(found.problem) == broken
    hashes = [row["hash"] for row in at_once.rows]
    assert [found.hash_of(seq) for seq in range(1, found.head.seq + 1)] == hashes
    assert broken or max(sizes) <= max(piece, 2_000)
    if not broken:
        assert judged.at == chain.read_bytes()[:-1].rfind(b"\n") + 1
        assert judged.lines == chain.read_bytes().count(b"\n") - 1
        append(chain, "fra", EVENTS[0])
        with chain.open("ab") as file:
            file.write(b"no line\n" * 2)
        append(chain, "fra", EVENTS[0])
        chain.write_bytes(chain.read_bytes().replace(b"no line\n", b"NO line\n", 1))
        later, _ = anchoring._judge(chain, "fra", judged)
        assert later.problem == verify(chain.read_bytes(), "fra").problem != ""
