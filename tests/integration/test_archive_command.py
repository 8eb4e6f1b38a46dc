"""`imctl archive` and `imctl query` against a whole running node, and when it is down."""

from __future__ import annotations

import asyncio
import contextlib
import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest

from imcore.errors import BadInput, ImError
from imcore.proto import peer_pb2 as peer
from imcore.proto import peer_pb2_grpc as rpc
from imcore.tls import grpc_channel
from imctl import admin, errors
from imctl.commands.archive import _age_ms
from imctl.identity import ipconf_urls, token_for
from imctl.main import app
from imctl.target.local import Local
from imctl.testing import schema
from imctl.testing.lab import until
from imctl.testing.onenode import running
from services.node.node import Node
from services.sdk import Client, Options


async def imctl(folder: Path, *arguments: str) -> tuple[int, str, str]:
    """The command as a user types it: exit status, what it printed, what it said beside that."""
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "imctl", *arguments, "--data", str(folder),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    out, said = await process.communicate()
    schema.check_output(arguments, out.decode())
    return process.returncode or 0, out.decode(), said.decode()


def run(*arguments: str, data: Path) -> tuple[int, str, str]:
    """The same without a process of its own."""
    out, said = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(said):
        try:
            app([*arguments, "--data", str(data)], standalone_mode=False)
            status = 0
        except ImError as error:
            status = errors.report(error)
    return status, out.getvalue(), said.getvalue()


async def archived(folder: Path, *arguments: str) -> dict[str, Any]:
    status, out, said = await imctl(folder, "archive", *arguments, "-o", "json")
    assert status == 0, said
    found: dict[str, Any] = json.loads(out)
    return found


async def closed(node: Node) -> None:
    """Until what has been accepted by now may be archived."""
    reached = node.hlc.last

    async def holds() -> bool:
        return node.archives.closed() >= reached

    await until(holds, 10, "the closed HLC does not rise")


async def test_old_messages_are_archived_and_asked_for(tmp_path: Path) -> None:
    async with running(tmp_path, faults=False) as node:
        target = Local.open(tmp_path)
        client = Client(
            token_for(target, "ann", "phone", node.clock), ipconf_urls(target),
            target.pki / "ca.pem", options=Options(client="lab/1", start_timeout_ms=20_000),
        )  # fmt: skip
        async with client as ann:
            chat = ann.direct("bob")
            keys = [(await ann.send(chat, text)).key for text in (b"one", b"secret", b"\x1b[2J")]
            await closed(node)
            assert (await archived(tmp_path))["messages"] == 0  # none is 30 days old
            counted = await archived(tmp_path, "--older-than", "0s", "--dry-run")
            assert (counted["messages"], counted["dry_run"], counted["files"]) == (3, True, 0)
            first = await archived(tmp_path, "--older-than", "0s")
            assert (first["messages"], first["changed"], first["files"]) == (3, 0, 1)
            await ann.recall(chat, keys[1])
            await ann.send(chat, b"four")
            await closed(node)
            second = await archived(tmp_path, "--older-than", "0s")
            assert second["after"] == first["until"]
            assert (second["messages"], second["changed"], second["erased"]) == (1, 1, 1)
            again = await archived(tmp_path, "--older-than", "0s")
            assert again["messages"] == again["changed"] == again["files"] == 0
        audit = target.audit_file().read_text()
        assert audit.count("are read for an archive") >= 2
    await asyncio.to_thread(ask_when_it_is_down, tmp_path)


def ask_when_it_is_down(folder: Path) -> None:
    status, _, said = run("archive", data=folder)
    assert (status, said.count("\n")) == (1, 1)
    sql = "select text, recalled, sent_at, content from messages order by sent_at"
    status, out, _ = run("query", "-o", "json", sql, data=folder)
    rows = json.loads(out)
    assert [row["text"] for row in rows] == ["one", None, "\x1b[2J", "four"]
    assert rows[0]["content"] == "b25l" and rows[0]["sent_at"].startswith("20")
    assert rows[1]["recalled"]
    sql = "select sender, text from messages"
    status, out, said = run("query", "-o", "csv", "--limit", "2", sql, data=folder)
    assert len(list(csv.reader(out.splitlines()))) == 3
    assert "only the first 2 rows" in said
    _, out, _ = run("query", "select text from messages", data=folder)
    assert "one" in out and "\x1b" not in out
    assert run("query", "-o", "json", "select 1 where false", data=folder) == (0, "[]\n", "")
    refused = (2, "", "error: expected one select, got drop\n")
    assert run("query", "drop table segments", data=folder) == refused
    whole = (0, "3 of 3 files match their manifests\n", "")
    assert run("archive", "--verify", data=folder) == whole


async def test_messages_are_for_the_admin_alone(tmp_path: Path) -> None:
    async with running(tmp_path, faults=False) as node:
        await closed(node)
        target = Local.open(tmp_path)
        address = target.address("fra")
        for caller in ("viewer", "operator", "fra"):
            async with grpc_channel(target.pki, caller, "fra", address) as channel:
                with pytest.raises(grpc.aio.AioRpcError) as refused:
                    async for _ in rpc.ArchivesStub(channel).Read(peer.ArchiveRequest(until=1)):
                        raise AssertionError("it was answered")
            assert refused.value.code() is grpc.StatusCode.PERMISSION_DENIED
        beyond = peer.ArchiveRequest(until=1 << 62)
        with pytest.raises(BadInput, match="may still be added"):
            async for _ in admin.archived(target, "fra", beyond):
                raise AssertionError("it was answered")


def test_ages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert _age_ms("2h") == 7_200_000
    assert _age_ms("0s") == 0
    for wrong in ("soon", "2026-01-01", "-1d", "5", ""):
        with pytest.raises(BadInput, match="expected an age"):
            _age_ms(wrong)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    status, _, said = run("archive", data=tmp_path)
    assert (status, said) == (1, "error: archives need DuckDB: pip install 'imctl[archive]'\n")
