"""`imctl audit`, `imctl audit verify` and `imctl audit rules` on the chains of a whole node, as it
runs and as it is attacked."""

from __future__ import annotations

import asyncio
import json
import os
import random
import shutil
import socket
import sys
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from imcore import auditfile
from imcore.audit import EMPTY, Anchor, seal, verify
from imcore.runtime import SystemClock
from imctl.audit import own_writer, writer_of
from imctl.target.local import Local
from imctl.testing import schema
from imctl.testing.onenode import running
from imctl.traffic import Control
from services.control.rules import Change, Kind
from services.node.node import Node
from services.policy.document import IdcState

SOON_S = 60.0
SEALED = ("seq", "writer", "hash")  # what a chain adds to an event


async def imctl(folder: Path, *arguments: object) -> tuple[int, str, str]:
    process = await asyncio.create_subprocess_exec(
        Path(sys.executable).with_name("imctl"),
        *map(str, arguments),
        env={**os.environ, "IMCTL_DATA": str(folder), "COLUMNS": "80"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(SOON_S):
        out, errors = await process.communicate()
    schema.check_output(arguments, out.decode())
    return process.returncode or 0, out.decode(), errors.decode()


async def until(condition: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON_S):
        while not condition():  # noqa: ASYNC110 - the node's own loops
            await asyncio.sleep(0.05)


def state(node: Node) -> IdcState | None:
    policy = node.traffic.holder.policy
    return policy.state("fra") if policy else None


@asynccontextmanager
async def with_decisions(folder: Path) -> AsyncIterator[Node]:
    """One IDC that was drained and taken back: `imctl` and its controller decided things."""
    (folder / "fra").mkdir()
    with auditfile.kept(folder / "fra" / auditfile.FILE, "fra"):
        async with running(folder, faults=False) as node:
            over = ("--override", "active-idcs-min")
            status, _, errors = await imctl(folder, "drain", "fra", "--yes", "--no-wait", *over)
            assert status == 0, errors
            await until(lambda: state(node) is IdcState.DRAINED)
            assert (await imctl(folder, "drain", "fra", "--yes"))[0] == 3
            await until(lambda: node.anchoring._seen == (folder / "fra/audit.jsonl").stat().st_size)
            yield node


async def test_who_did_what_and_whether_that_is_all(tmp_path: Path) -> None:
    async with with_decisions(tmp_path):
        status, out, errors = await imctl(tmp_path, "audit", "-o", "json")
        assert (status, errors) == (0, "")
        rows = [
            (row["writer"], row["kind"], row["idc"], row["decision"]) for row in json.loads(out)
        ]
        assert rows == [
            (own_writer(), "drain", "fra", "committed"),
            ("fra", "drained", "fra", "committed"),
            (own_writer(), "drain", "fra", "refused"),
        ]
        by = [row["by"] for row in json.loads(out)]
        assert by == ["operator", "controller fra", "operator"]
        _, shown, _ = await imctl(tmp_path, "audit", "--since", "1h")
        assert "operator" in shown and "refused" in shown
        assert max(map(len, shown.splitlines())) <= 80
        assert json.loads((await imctl(tmp_path, "audit", "--idc", "sin", "-o", "json"))[1]) == []
        future = ("audit", "--since", "2999-01-01", "-o", "json")
        assert json.loads((await imctl(tmp_path, *future))[1]) == []
        wrong = await imctl(tmp_path, "audit", "--since", "yesterday")
        assert (wrong[0], wrong[2].count("\n")) == (2, 1)

        status, out, errors = await imctl(tmp_path, "audit", "verify")
        assert (status, errors) == (0, "")
        assert out.splitlines() == [
            f"{tmp_path}/audit.jsonl: 2 events, intact",
            f"{tmp_path}/fra/audit.jsonl: 1 events, intact",
        ]
    # Down: chains can be read and judged, their ends cannot.
    (tmp_path / "run.json").unlink()
    status, out, _ = await imctl(tmp_path, "audit", "verify")
    assert (status, out.count("end not checked")) == (0, 2)


async def test_whether_the_safety_rules_were_kept(tmp_path: Path) -> None:
    async with with_decisions(tmp_path):
        status, out, errors = await imctl(tmp_path, "audit", "rules", "-o", "json")
        assert (status, errors) == (0, "")
        assert [(row["epoch"], row["judged"], row["broken"]) for row in json.loads(out)] == [
            (2, True, []), (3, True, []),
        ]  # fmt: skip
    status, out, _ = await imctl(tmp_path, "audit", "rules")
    assert (status, out.splitlines()[-1]) == (0, "2 changes judged, none broke a rule")
    assert max(map(len, out.splitlines())) <= 80

    # As if the rule that the drain broke had not been overridden.
    path, head, data = tmp_path / "audit.jsonl", EMPTY, b""
    for line in path.read_text().splitlines():
        event = {name: value for name, value in json.loads(line).items() if name not in SEALED}
        event["evidence"]["overridden"] = []
        data += (sealed := seal(event, own_writer(), head))
        head = Anchor(json.loads(sealed)["seq"], json.loads(sealed)["hash"])
    path.write_bytes(data)
    status, out, _ = await imctl(tmp_path, "audit", "rules")
    assert status == 1
    assert "BROKEN active-idcs-min" in out
    assert out.splitlines()[-1] == "2 changes judged, 1 broke a rule"

    # What stands behind a break is not judged, and that is said.
    path.write_bytes(b"{}\n" + data)
    status, out, errors = await imctl(tmp_path, "audit", "rules")
    assert errors.startswith(f"warning: {path}: edited: line 1")


async def test_a_cut_end_and_a_chain_written_anew_are_found(tmp_path: Path) -> None:
    async with with_decisions(tmp_path) as node:
        mine, theirs = tmp_path / "audit.jsonl", tmp_path / "fra" / "audit.jsonl"
        whole = mine.read_bytes()
        mine.write_bytes(whole.splitlines(keepends=True)[0])
        status, out, _ = await imctl(tmp_path, "audit", "verify")
        assert status == 1
        assert "BROKEN: truncated: it ends at event 1, but the registries know event 2" in out

        # Going on behind the cut hides nothing.
        for _ in range(2):
            assert (await imctl(tmp_path, "drain", "fra", "--yes"))[0] == 3
        assert verify(mine.read_bytes(), own_writer()).problem == ""
        status, out, _ = await imctl(tmp_path, "audit", "verify", "-o", "json")
        assert status == 1
        rewritten = "rewritten: event 2 is not the one that the registries know"
        assert json.loads(out)[0]["problem"] == rewritten

        # The node finds by itself that its own file is gone, or is another.
        theirs.unlink()
        await until(lambda: node.anchoring.alarm)
        assert "truncated: it ends at event 0" in str(node.status.as_dict()["alarms"])
        auditfile.append(theirs, "fra", {"at_ms": 1, "sentence": "nothing happened"})
        await until(lambda: "rewritten" in str(node.anchoring.alarm))


async def test_rubbish_in_the_place_of_one_anchor_is_said_and_the_other_ends_are_checked(
    tmp_path: Path,
) -> None:
    async with with_decisions(tmp_path) as node:
        await node.anchoring._proposer.change("audit/fra", lambda _: b'{"seq":-9,"hash":""}')
        mine, theirs = tmp_path / "audit.jsonl", tmp_path / "fra" / "audit.jsonl"
        auditfile.append(theirs, "fra", {"at_ms": 1, "sentence": "more"})
        await until(lambda: "is not anchored" in str(node.status.as_dict()["alarms"]))
        mine.write_bytes(mine.read_bytes().splitlines(keepends=True)[0])
        status, out, errors = await imctl(tmp_path, "audit", "verify", "-o", "json")
        assert (status, errors) == (1, "")
        first, second = (row["problem"] for row in json.loads(out))
        assert first.startswith("truncated: it ends at event 1")
        assert second.startswith("its end cannot be checked") and "fra" in second


async def test_a_chain_over_several_files_is_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditfile, "FULL_BYTES", 1)  # of the node; each `imctl` has its own
    async with with_decisions(tmp_path) as node:
        mine, theirs = tmp_path / auditfile.FILE, tmp_path / "fra" / auditfile.FILE
        for file, writer in ((mine, own_writer()), (theirs, "fra")):
            auditfile.append(file, writer, {"at_ms": 1, "sentence": "more"})
            assert len(auditfile.files(file)) == 2
        await until(lambda: node.anchoring._seen == auditfile.size(theirs))
        assert node.anchoring.alarm is None
        status, out, errors = await imctl(tmp_path, "audit", "verify", "-o", "json")
        assert (status, errors) == (0, "")
        assert [(row["events"], row["anchored"]) for row in json.loads(out)] == [(3, 2), (2, 2)]
        auditfile.files(theirs)[0].unlink()
        await until(lambda: "removed: event 1" in str(node.anchoring.alarm))
        assert (await imctl(tmp_path, "audit", "verify"))[0] == 1


async def test_an_edited_line_is_named_and_what_stands_before_it_shown(tmp_path: Path) -> None:
    async with with_decisions(tmp_path):
        path = tmp_path / "audit.jsonl"
        path.write_bytes(path.read_bytes().replace(b'"refused"', b'"allowed"'))
        status, out, _ = await imctl(tmp_path, "audit", "verify")
        assert status == 1
        assert f"{path}: 1 events, BROKEN: edited: line 2 (event 2)" in out
        status, out, errors = await imctl(tmp_path, "audit", "-o", "json")
        assert (status, len(json.loads(out))) == (0, 2)
        assert "edited: line 2" in errors


async def cordon(folder: Path, request: str) -> None:
    async with Control(Local.open(folder), SystemClock(), random.Random(3)) as control:
        await control.submit(Change(Kind.CORDON, "fra", request, "operator"))


async def test_two_machines_have_chains_and_anchors_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    one.mkdir()
    async with running(one, faults=False):
        shutil.copytree(one / "pki", two / "pki")
        for name in ("region.yaml", "run.json"):
            shutil.copy(one / name, two / name)
        first = own_writer()
        await cordon(one, "r1")
        await cordon(one, "r2")
        monkeypatch.setattr(socket, "gethostname", lambda: "Ops_2")
        assert own_writer().startswith("imctl@ops2-")
        await cordon(two, "r3")
        monkeypatch.undo()
        for folder, writer in ((one, first), (two, "imctl@ops2-")):
            status, out, _ = await imctl(folder, "audit", "verify")
            assert writer_of(folder / "audit.jsonl").startswith(writer)
            if folder is one:
                assert (status, out.splitlines()[0].split(": ")[1]) == (0, "2 events, intact")

        # A chain that is by another machine now, where this one had written, is no way out.
        status, out, _ = await imctl(two, "audit", "verify")
        assert status == 1
        assert f"but the registries know event 2 by {first}" in out


def test_a_chain_keeps_its_writer_when_the_machine_gets_another_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "audit.jsonl"
    assert writer_of(file) == own_writer()
    auditfile.append(file, own_writer(), {"at_ms": 1})
    before = own_writer()
    monkeypatch.setattr(socket, "gethostname", lambda: "renamed")
    assert writer_of(file) == before != own_writer()
    file.rename(tmp_path / "audit-000000000001.jsonl")  # put aside, and none begun yet
    assert writer_of(file) == before
    (tmp_path / "audit-000000000001.jsonl").rename(file)
    file.unlink()
    auditfile.append(file, "imctl", {"at_ms": 1})
    assert writer_of(file) == "imctl"  # of before machines had names
    file.write_bytes(b"rubbish\n")
    assert writer_of(file) == own_writer()
