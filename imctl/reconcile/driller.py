"""Drills as processes beside the operator: `imctl drill run` on a folder like that of a deployment
on Kubernetes, made of what the DrillRun names."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from imcore.region.model import Region
from imctl.drill.faults import Fault, FaultBook, Kind
from imctl.reconcile.objects import region_text
from imctl.target.local import COPY
from imctl.target.runfile import RunFile
from imctl.target.sites import Site, Sites, parts

# What an IDC may have of a drill that nobody knows any more.
OF_AN_IDC = {
    Kind.KILL: "be down", Kind.CLOCK: "have a wrong clock", Kind.DISK: "have a broken disk",
}  # fmt: skip
FILES = ("report.md", "report.json", "report.html")
SAID = "said.log"
SAID_LINES = 20


@dataclass(frozen=True, slots=True)
class Job:
    """``namespaces``: of each part of the region. ``pki``: files by name."""

    name: str
    text: str
    var: Mapping[str, str]
    region: Region
    namespaces: Mapping[str, str]
    pki: Mapping[str, bytes] = field(repr=False)


class Done(NamedTuple):
    """``said``: the last lines that it printed. ``files``: of its report."""

    status: int
    said: str
    files: Mapping[str, str]

    @property
    def report(self) -> dict[str, Any] | None:
        """None: there is none, or its disk was full."""
        try:
            found: dict[str, Any] = json.loads(self.files.get("report.json", ""))
        except ValueError:
            return None
        return found


class Drilling(Protocol):
    """By the uid of a DrillRun. All but ``begin`` may be called of one that is not known."""

    def begin(self, uid: str, job: Job) -> None: ...

    def undo(self, uid: str, job: Job) -> None:
        """What whoever ran it has left."""
        ...

    def runs(self, uid: str) -> bool:
        """Whether it was begun here, and has not been forgotten."""
        ...

    def done(self, uid: str) -> Done | None:
        """None while it goes on."""
        ...

    def stop(self, uid: str, hurry: bool = False) -> None:
        """It ends its drill and undoes everything; may be called again and again. ``hurry``: nobody
        waits for its judgement."""
        ...

    def forget(self, uid: str) -> None: ...


class Driller:
    """``folder``: for what is known of drills while they run, keys too. ``may_write_s``: for how
    long this operator may write; raises NotLeading. ``context``: of the kubeconfig."""

    def __init__(self, folder: Path, may_write_s: Callable[[], float], context: str) -> None:
        self._folder = folder
        self._may_write_s = may_write_s
        self._context = context
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._told: dict[str, int] = {}  # how often to end

    def begin(self, uid: str, job: Job) -> None:
        folder = self._prepare(uid, job)
        drill = folder / f"{job.name}.yaml"
        drill.write_text(job.text)
        given = [f"--var={name}={value}" for name, value in job.var.items()]
        self._spawn(uid, ["run", str(drill), "--yes", "--out", str(folder / "out"), *given])

    def undo(self, uid: str, job: Job) -> None:
        """As of a drill that has broken every IDC and cut every link: what is whole is not
        touched."""
        folder = self._prepare(uid, job)
        idcs = [idc.name for idc in job.region.spec.idcs]
        book, now_ms = FaultBook(folder), int(time.time() * 1000)
        book.begin(job.name, uid, idcs)
        for idc in idcs:
            for kind, what in OF_AN_IDC.items():
                said = f"{idc} may {what}"
                book.add(Fault(f"{idc}-{kind}", kind, idc, "", said, now_ms, now_ms))
        for a, b in combinations(parts(job.region), 2):
            said = f"the link {a} <-> {b} may be cut"
            book.add(Fault(f"{a}-{b}", Kind.LINK, a, b, said, now_ms, now_ms))
        self._spawn(uid, ["abort"])

    def _prepare(self, uid: str, job: Job) -> Path:
        self.forget(uid)
        folder = self._folder / uid
        folder.mkdir(parents=True)
        folder.chmod(0o700)
        (folder / "pki").mkdir()
        for name, content in job.pki.items():
            (folder / "pki" / name).write_bytes(content)
        (folder / COPY).write_text(region_text(job.region))
        sites = {
            part: Site(namespace=job.namespaces[part], context=self._context)
            for part in parts(job.region)
        }
        run = RunFile(
            region=str(folder / COPY), faults=False, link_admin="", elsewhere=True,
            sites=Sites(sites=sites).model_dump(mode="json"),
        )  # fmt: skip
        run.write(folder)
        return folder

    def _spawn(self, uid: str, arguments: Sequence[str]) -> None:
        folder = self._folder / uid
        command = [sys.executable, "-m", "imctl.drill.leased", "drill", *arguments]
        with (folder / SAID).open("wb") as said:
            self._children[uid] = subprocess.Popen(
                [*command, "--data", str(folder)],
                stdin=subprocess.PIPE,
                stdout=said,
                stderr=subprocess.STDOUT,
                cwd=folder,
            )
        self.keep()

    def keep(self) -> None:
        """To be called once a second: tells all that run for how long they may go on. Raises
        NotLeading."""
        left = self._may_write_s() if self._children else 0.0
        for child in self._children.values():
            if child.stdin is not None and child.poll() is None:
                with contextlib.suppress(BrokenPipeError):
                    child.stdin.write(f"{left:.1f}\n".encode())
                    child.stdin.flush()

    def runs(self, uid: str) -> bool:
        return uid in self._children

    def done(self, uid: str) -> Done | None:
        child = self._children.get(uid)
        status = child.poll() if child is not None else None
        if status is None:
            return None
        folder = self._folder / uid
        said = (folder / SAID).read_text(errors="replace").splitlines()
        files = {}
        for name in FILES:
            with contextlib.suppress(OSError):
                files[name] = (folder / "out" / name).read_text()
        return Done(status, "\n".join(said[-SAID_LINES:]), files)

    def stop(self, uid: str, hurry: bool = False) -> None:
        """One step a call: signals that come at once are one."""
        told = self._told.get(uid, 0)
        child = self._children.get(uid)
        if child is not None and child.poll() is None and told < (2 if hurry else 1):
            self._told[uid] = told + 1
            child.terminate()

    def forget(self, uid: str) -> None:
        self._told.pop(uid, None)
        child = self._children.pop(uid, None)
        if child is not None and child.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                child.stdin.close()
        shutil.rmtree(self._folder / uid, ignore_errors=True)

    def close(self) -> None:
        """All that run end by themselves: whoever leads next undoes what they leave."""
        for child in self._children.values():
            if child.poll() is None:
                child.terminate()
