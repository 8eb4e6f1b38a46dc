"""tools/setup.py on a machine on which it cannot do its work: one clear line, no traceback."""

from __future__ import annotations

import os
import runpy
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
NEEDED = (
    "pyproject.toml", "requirements.lock", "requirements-dev.lock", "requirements-setup.lock",
)  # fmt: skip


def copied(target: Path) -> Path:
    (target / "tools").mkdir(parents=True)
    shutil.copy(ROOT / "tools" / "setup.py", target / "tools")
    for name in NEEDED:
        shutil.copy(ROOT / name, target)
    return target


def one_line(checkout: Path) -> str:
    command = [sys.executable, str(checkout / "tools" / "setup.py"), "demo"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    return line


@pytest.fixture
def read_only(tmp_path: Path, mount_tmpfs: Callable[[Path, str], None]) -> Path:
    """A checkout in which nothing can be made. Permissions do not stop root, so for root it lies on
    a file system that is mounted read-only."""
    folder = tmp_path / "checkout"
    if os.geteuid() != 0:
        copied(folder).chmod(0o555)
        return folder
    mount_tmpfs(folder, "4m")
    copied(folder)
    subprocess.run(["mount", "-o", "remount,ro", str(folder)], check=True)
    return folder


def test_no_write_permission(read_only: Path) -> None:
    line = one_line(read_only)
    assert line.startswith(f"error: no write permission in {read_only}")
    assert line.endswith("change its owner")


def test_a_file_where_the_environment_would_be(tmp_path: Path) -> None:
    checkout = copied(tmp_path / "checkout")
    (checkout / ".venv").write_text("")
    assert one_line(checkout).endswith("remove it")


def test_uv_is_told_what_pip_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("UV_DEFAULT_INDEX", raising=False)
    monkeypatch.setenv("SSL_CERT_FILE", "/uv/knows")
    listed = """\
global.cert='/a/bundle'
global.index-url='https://files.example/simple'
install.find-links='/wheels\\nhttps://more.example/'
global.quiet='1'
:env:.index-url='https://environment.example/simple'
"""
    settings = runpy.run_path(str(ROOT / "tools" / "setup.py"))["uv_settings"](listed)
    assert settings == {
        "UV_DEFAULT_INDEX": "https://environment.example/simple",
        "UV_FIND_LINKS": "/wheels,https://more.example/",
    }
