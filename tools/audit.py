"""The audit of dependencies: ``python -m tools.audit [--known]``.

Without an option, and without a network: every lock pins each package to one version and to hashes
of its files, nothing comes from elsewhere than the registry, the locks agree with each other and
with pyproject.toml, and what is installed here is what is locked. ``--known`` asks the database of
known vulnerabilities about every locked version (pip-audit, in an environment of its own below
build/); where that is not reached it says so. Exit status 1: something was found.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[1]
RUNTIME, DEV, AUDIT = "requirements.lock", "requirements-dev.lock", "requirements-audit.lock"
INSTALLER = "requirements-setup.lock"
VENV = ROOT / "build" / "audit"
UNREACHED = ("ConnectionError", "ProxyError", "ConnectTimeout", "ReadTimeout", "SSLError")
_PINNED = re.compile(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)(?: ;[^\\]*)?\s*\\?$")
_HASH = re.compile(r"^--hash=sha256:[0-9a-f]{64}\s*\\?$")


class Lock:
    """``versions``: by canonical name. ``problems``: sentences."""

    def __init__(self, name: str, text: str) -> None:
        self.versions: dict[str, str] = {}
        self.problems: list[str] = []
        hashes = 1
        for number, line in enumerate(map(str.strip, text.splitlines()), start=1):
            if not line or line.startswith("#"):
                continue
            if _HASH.match(line):
                hashes += 1
            elif found := _PINNED.match(line):
                if not hashes:
                    self.problems.append(f"{name}: the package before line {number} has no hash")
                self.versions[canonicalize_name(found[1])] = found[2]
                hashes = 0
            else:
                self.problems.append(f"{name}:{number}: expected a version or a hash, got {line}")
        if not hashes:
            self.problems.append(f"{name}: the last package has no hash")


def check(
    project: Mapping[str, Any], runtime: Lock, dev: Lock, audit: Lock, installer: Lock
) -> list[str]:
    found = [*runtime.problems, *dev.problems, *audit.problems, *installer.problems]
    for name, version in runtime.versions.items():
        if dev.versions.get(name) != version:
            found.append(f"{name} is {version} in {RUNTIME}, {dev.versions.get(name)} in {DEV}")
    groups = project["dependency-groups"]
    wanted = [
        (RUNTIME, runtime, project["project"]["dependencies"]),
        (DEV, dev, [*groups["setup"], *groups["dev"]]),
        (AUDIT, audit, groups["audit"]),
        (INSTALLER, installer, groups["installer"]),
    ]
    for name, lock, lines in wanted:
        for line in lines:
            if not isinstance(line, str):  # an included group
                continue
            requirement = Requirement(line)
            locked = lock.versions.get(canonicalize_name(requirement.name))
            if requirement.url or locked is None or not requirement.specifier.contains(locked):
                found.append(f"pyproject.toml wants {line}, {name} has {locked}")
    return found


def drifted(dev: Lock, installed: Iterable[tuple[str, str]]) -> list[str]:
    """What is installed in another version than the locked one."""
    return [
        f"{name} is {version} here, {dev.versions[name]} in {DEV}"
        for name, version in installed
        if dev.versions.get(name, version) != version
    ]


def here() -> list[tuple[str, str]]:
    return sorted(
        (canonicalize_name(each.metadata["Name"]), each.version)
        for each in metadata.distributions()
    )


def known(command: list[str]) -> tuple[int, str]:
    """The exit status, and what to say, of an auditor that is run so."""
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode and any(sign in said for sign in UNREACHED):
        return 0, "not run: the database of known vulnerabilities was not reached"
    return done.returncode, said.strip()


def _known() -> tuple[int, str]:
    python = VENV / "bin" / "python"
    lock = str(ROOT / AUDIT)
    made = [
        [sys.executable, "-m", "venv", "--clear", str(VENV)],
        [str(python), "-m", "pip", "--quiet", "install", "--require-hashes", "-r", lock],
    ]
    for command in made:
        subprocess.run(command, check=True)
    audit = [str(python), "-m", "pip_audit", "--disable-pip", "--require-hashes"]
    locks = ["-r", str(ROOT / DEV), "-r", str(ROOT / INSTALLER)]
    return known([*audit, "--progress-spinner", "off", *locks])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--known", action="store_true", help="ask for known vulnerabilities")
    if parser.parse_args().known:
        status, said = _known()
        print(said)
        raise SystemExit(status)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    names = (RUNTIME, DEV, AUDIT, INSTALLER)
    runtime, dev, audit, installer = (Lock(name, (ROOT / name).read_text()) for name in names)
    found = check(project, runtime, dev, audit, installer) + drifted(dev, here())
    for sentence in found:
        print(sentence)
    raise SystemExit(1 if found else 0)


if __name__ == "__main__":
    main()
