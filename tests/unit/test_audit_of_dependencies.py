"""The audit of dependencies finds what a lock must not hold."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from tools.audit import Lock, check, drifted, known

HASH = "--hash=sha256:" + "0" * 64
GOOD = f"""
a-b==1.0 \\
    {HASH} \\
    {HASH}
    # via c
c==2.0 ; python_version < '4' \\
    {HASH}
"""


def project(*dependencies: str) -> dict[str, Any]:
    groups: dict[str, Any] = {"setup": [], "dev": [{"include-group": "setup"}]}
    groups |= {"audit": [], "installer": []}
    return {"project": {"dependencies": list(dependencies)}, "dependency-groups": groups}


def found(runtime: str, dev: str, *dependencies: str) -> list[str]:
    locks = (
        Lock("requirements.lock", runtime),
        Lock("requirements-dev.lock", dev),
        Lock("audit", ""),
        Lock("installer", ""),
    )
    return check(project(*dependencies), *locks)


def test_pinned_and_hashed_locks_that_agree_are_clean() -> None:
    assert found(GOOD, GOOD, "A_B>=1", "c<3; python_version < '4'") == []


@pytest.mark.parametrize(
    "line",
    [
        "a-b>=1.0",
        "-e git+https://example.org/a.git#egg=a",
        "a @ https://example.org/a.whl",
        "--index-url https://example.org/simple",
        "a==1.0 --hash=md5:00",
    ],
)
def test_what_is_not_pinned_to_a_hash_of_the_registry_is_found(line: str) -> None:
    assert len(found(GOOD + line + "\n", GOOD)) == 1


def test_a_package_without_a_hash_is_found() -> None:
    [sentence] = found(GOOD + "d==1.0\n", GOOD + f"d==1.0 \\\n {HASH}\n")
    assert "hash" in sentence


def test_locks_and_project_that_disagree_are_found() -> None:
    assert found(GOOD, GOOD.replace("c==2.0", "c==2.1")) == [
        "c is 2.0 in requirements.lock, 2.1 in requirements-dev.lock"
    ]
    assert len(found(GOOD, GOOD, "a-b>=2", "missing")) == 2


def test_what_is_installed_in_another_version_is_found() -> None:
    lock = Lock("requirements-dev.lock", GOOD)
    installed = [("a-b", "1.0"), ("c", "1.9"), ("unlocked", "5")]
    assert drifted(lock, installed) == ["c is 1.9 here, 2.0 in requirements-dev.lock"]


def test_a_database_that_is_not_reached_is_said_and_no_failure() -> None:
    """pip-audit ends with a traceback then; here the end of it."""
    unreached = "raise SystemExit('requests.exceptions.ProxyError: Max retries exceeded')"
    status, said = known([sys.executable, "-c", unreached])
    assert status == 0 and said.startswith("not run:")
    vulnerable = "print('aiohttp 3.0 PYSEC-2024-1'); raise SystemExit(1)"
    assert known([sys.executable, "-c", vulnerable]) == (1, "aiohttp 3.0 PYSEC-2024-1")
