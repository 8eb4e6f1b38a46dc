"""Canaries: real secrets of a real deployment, and planted ones, looked for in everything that was
printed, logged or written."""

from __future__ import annotations

import asyncio
import base64
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from imcore.tls import client_ssl_context
from imctl.target import runfile
from imctl.testing.lab import lab_region
from imctl.testing.onenode import one_idc

pytestmark = pytest.mark.e2e

IMCTL = Path(sys.executable).with_name("imctl")
SAID = "canary-of-a-private-message"
PASSWORD = "canary-of-a-password"
FORGED = "canaryofaforgedtoken.canaryofaforgedsignature"


class Run:
    """Commands of one deployment; ``said`` is all that they printed, but for the token commands,
    whose output is the token."""

    def __init__(self, data: Path) -> None:
        self.data = data
        self.said = ""

    def __call__(self, *arguments: object, secret: bool = False) -> tuple[int, str]:
        done = subprocess.run(
            [IMCTL, *map(str, arguments)],
            env=os.environ | {"IMCTL_DATA": str(self.data), "COLUMNS": "200"},
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )
        self.said += done.stderr + ("" if secret else done.stdout)
        return done.returncode, done.stdout

    def ok(self, *arguments: object, secret: bool = False) -> str:
        status, out = self(*arguments, secret=secret)
        assert status == 0, (arguments, self.said[-2000:])
        return out


@pytest.fixture
def run(tmp_path: Path) -> Iterator[Run]:
    data = tmp_path / "deployment"
    yield Run(data)
    if runfile.read(data) is not None:
        Run(data)("down")


def keys_of(folder: Path) -> dict[str, list[bytes]]:
    """Every secret of a pki folder, in each form in which it might get out."""
    found = {}
    for path in folder.glob("*.key"):
        body = "".join(path.read_text().splitlines()[1:-1])
        # A line of the PEM, its text without line breaks, and its bytes.
        found[path.name] = [
            *(line.encode() for line in path.read_text().splitlines()[1:-1]),
            body[:64].encode(),
            base64.b64decode(body)[36:68],
        ]
    for number, text in json.loads((folder / "region-keys.json").read_text())["keys"].items():
        raw = base64.b64decode(text)
        found[f"region key {number}"] = [text.encode(), raw, raw.hex().encode()]
    return found


def leaks(found: dict[str, list[bytes]], text: bytes, where: str) -> list[str]:
    return [f"{name} in {where}" for name, forms in found.items() if any(f in text for f in forms)]


def in_files(found: dict[str, list[bytes]], folder: Path, apart: Path) -> list[str]:
    """Of all files below the folder, binary ones too, but those of the pki."""
    said = []
    for path in folder.rglob("*"):
        if path.is_file() and apart not in path.parents:
            said += leaks(found, path.read_bytes(), str(path.relative_to(folder)))
    return said


def address(region: Path, what: str) -> tuple[str, int]:
    end = yaml.safe_load(region.read_text())["spec"]["idcs"][0]["endpoints"][what]
    return end.rpartition(":")[0], int(end.rpartition(":")[2])


async def _throw(region: Path, ca: Path, data: bytes, what: str) -> None:
    context = client_ssl_context(ca)
    host, port = address(region, what)
    reader, writer = await asyncio.open_connection(host, port, ssl=context)
    writer.write(data)
    with contextlib.suppress(OSError, TimeoutError):
        await writer.drain()
        await asyncio.wait_for(reader.read(4096), 1.0)
    writer.transport.abort()
    with contextlib.suppress(OSError):
        await writer.wait_closed()


def throw(region: Path, ca: Path, secrets: dict[str, list[bytes]]) -> None:
    """Secrets at places where a server might repeat what it was sent."""
    for form, *_ in secrets.values():
        for request in (
            b"GET /v1/gateways HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\n\r\n",
            b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n",
            b"GET /v1/gateways HTTP/1.1\r\nAuthorization Bearer %s\r\n\r\n",
            b"GET /v1/gateways %s HTTP/9.9\r\n\r\n",
            b"%s\r\n\r\n",
        ):
            asyncio.run(_throw(region, ca, request % form, "ipconf"))
        asyncio.run(_throw(region, ca, b"IMCP\x01\x01" + form, "gateway"))


def test_no_secret_gets_out_of_a_deployment(tmp_path: Path, run: Run) -> None:
    region = lab_region(tmp_path, one_idc)
    run.ok("up", region, "--data", run.data)
    pki = run.data / "pki"
    tokens = {
        name: [run.ok("token", *arguments, secret=True).strip().encode()]
        for name, arguments in {
            "a token": ("ann", "phone"),
            "an admin's token": ("root", "desk", "--admin"),
        }.items()
    }
    assert all(form.count(b".") == 1 for (form,) in tokens.values())
    thrown = tokens | {"a forged token": [FORGED.encode()]}
    throw(region, pki / "ca.pem", thrown)

    sent = json.loads(run.ok("send", "ann", "bob", SAID, "-o", "json"))
    assert sent["durability"] == "stored"
    run.ok("load", "--users", 6, "--rate", 10, "--seconds", 2)  # its history is one of the files
    run.ok("status")
    run.ok("status", "-o", "json")
    run.ok("ipconf", "lookup", "8.8.8.8")
    assert run("--debug", "drain", "fra", "--yes")[0] == 3
    run.ok("pki", "show")
    run.ok("pki", "show", "-o", "json")
    run.ok("pki", "keys", "add")
    run.ok("pki", "keys", "use", 2)
    run.ok("pki", "keys", "show", "-o", "json")
    run.ok("pki", "rotate", "fra")
    time.sleep(1.5)  # the node takes the key into use, and says so
    run.ok("status")
    run.ok("op", "list")
    run.ok("audit", "-o", "json")
    run.ok("logs")
    secrets = thrown | keys_of(pki)
    assert {"ca.key", "admin.key", "fra.key", "region key 1", "region key 2"} <= set(secrets)

    # Damaged files, whose contents an error might repeat.
    keys_file = (pki / "region-keys.json").read_text()
    (pki / "region-keys.json").write_text(keys_file.replace('"current"', '"currant"'))
    assert run("--debug", "token", "ann", "phone")[0] == 2
    time.sleep(1.5)
    (pki / "region-keys.json").write_text(keys_file)
    ca_key = (pki / "ca.key").read_text()
    (pki / "ca.key").write_text(ca_key.replace("BEGIN", "BEGAN"))
    assert run("--debug", "pki", "rotate", "fra")[0] == 2
    (pki / "ca.key").write_text(ca_key)
    run.ok("down")

    assert in_files({"sent": [SAID.encode()]}, run.data, pki), "the search finds what is there"
    private = {"a message": [SAID.encode()]}
    assert leaks(secrets | private, run.said.encode(), "the output") == []
    assert in_files(secrets, run.data, pki) == []
    texts = [path for path in run.data.rglob("*") if path.suffix in (".log", ".jsonl", ".yaml")]
    assert len(texts) >= 3
    for path in texts:
        assert leaks(private, path.read_bytes(), path.name) == []


@pytest.mark.parametrize(
    ("port", "engine", "where"),
    [("registry", "etcd", "endpoints"), ("log", "kafka", "brokers")],
    ids=["etcd", "kafka"],
)
def test_no_password_gets_out_of_a_deployment(
    tmp_path: Path, run: Run, port: str, engine: str, where: str
) -> None:
    """Of an engine that cannot be reached, so that every complaint about it is made."""
    secret = tmp_path / "secret" / "password"
    secret.parent.mkdir()
    secret.write_text(f"{PASSWORD}\n")

    def away(spec: dict[str, Any]) -> None:
        one_idc(spec)
        settings = {
            where: ["127.0.0.1:1"], "ca_file": str(run.data / "pki" / "ca.pem"),
            "username": "im", "password_file": str(secret),
        }  # fmt: skip
        spec["idcs"][0].setdefault("engines", {})[port] = {engine: settings}

    region = lab_region(tmp_path, away)
    found = {"the password": [PASSWORD.encode(), base64.b64encode(PASSWORD.encode())]}
    run.ok("validate", region)
    run.ok("up", region, "--data", run.data, "--no-wait")
    complaint, until = run.data / "fra" / "node.log", time.monotonic() + 60
    while not (complaint.exists() and "127.0.0.1:1" in complaint.read_text()):
        assert time.monotonic() < until, "it did not complain"
        time.sleep(0.2)
    run("status")
    run("status", "-o", "json")
    run.ok("logs")
    run.ok("down")
    assert leaks(found, run.said.encode(), "the output") == []
    assert in_files(found, run.data, run.data / "pki") == []


@pytest.mark.parametrize("field", ["password", "password_file", "token"])
def test_a_secret_in_a_region_file_is_refused_and_not_repeated(
    tmp_path: Path, run: Run, field: str
) -> None:
    def with_secret(spec: dict[str, Any]) -> None:
        etcd = {"endpoints": ["127.0.0.1:1"], "username": "im", field: PASSWORD}
        spec["idcs"][0].setdefault("engines", {})["registry"] = {"etcd": etcd}

    region = lab_region(tmp_path, with_secret)
    assert run("validate", region)[0] == 2
    assert run("--debug", "up", region, "--data", run.data)[0] == 2
    assert field in run.said
    assert PASSWORD not in run.said
    assert not run.data.exists() or in_files({"it": [PASSWORD.encode()]}, run.data, tmp_path) == []
