"""The command line as a user meets it: separate processes, real files."""

from __future__ import annotations

import json
import re
import resource
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from imcore.region.load import load_region
from imctl.testing.cli import ROOT
from imctl.testing.cli import alone as imctl
from imctl.testing.lab import lab_region

THREE = ROOT / "regions" / "three-idc.yaml"


def test_help_is_fast_and_imports_nothing_heavy() -> None:
    best = 9.0
    for _ in range(5):
        # CPU time: what it takes by the wall is the same on a machine that is not busy.
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        result = imctl("--help")
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        best = min(best, used)
    assert result.returncode == 0
    assert "switchover" in result.stdout
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert best < 0.2
    loaded = subprocess.run(
        [sys.executable, "-X", "importtime", "-m", "imctl", "--help"],
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    ).stderr
    for heavy in ("grpc", "pydantic", "rich.table", "yaml", "aiohttp", "cryptography"):
        assert f" {heavy}\n" not in loaded, heavy


def test_a_command_on_a_deployment_imports_no_client_of_an_engine() -> None:
    """They would be a third of what each of them takes to start."""
    code = (
        "import sys, imctl.commands.op, imctl.commands.status, imctl.commands.traffic; "
        "print([name for name in ('aiokafka', 'tikv_client', 'services.node') "
        "if name in sys.modules])"
    )
    told = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=20,
        check=True,
    )  # fmt: skip
    assert told.stdout == "[]\n"


def test_every_command_loads_and_explains_itself() -> None:
    from imctl.main import COMMANDS, load

    for name, (_, _, summary) in COMMANDS.items():
        command = load(name)
        assert command.name == name
        assert command.get_short_help_str(1_000) == summary, "its help's first sentence"


def test_completion_offers_commands_without_importing_them() -> None:
    environment = {"_IMCTL_COMPLETE": "complete_bash", "COMP_WORDS": "imctl fai", "COMP_CWORD": "1"}
    assert imctl(environment=environment).stdout.split() == ["failover", "failback"]


def test_the_version_wants_no_command() -> None:
    told = imctl("--version")
    assert told.returncode == 0 and re.fullmatch(r"\d+\.\d+\.\d+\n", told.stdout)


def test_wrong_usage_is_2_and_names_it() -> None:
    result = imctl("nonsense")
    assert result.returncode == 2
    assert "No such command 'nonsense'" in result.stderr


def test_validate_names_file_line_and_field(tmp_path: Path) -> None:
    good = imctl("validate", THREE)
    assert (good.returncode, good.stderr) == (0, "")
    bad = tmp_path / "bad.yaml"
    bad.write_text(THREE.read_text().replace("default: europe", "default: mars"))
    result = imctl("validate", THREE, bad)
    assert result.returncode == 2
    (line,) = result.stderr.splitlines()
    assert line.startswith(f"{bad}:")
    assert "spec.geo.default: expected the name of a shard" in line


def test_an_error_is_one_line_and_debug_shows_where() -> None:
    result = imctl("validate", "none.yaml")
    assert result.returncode == 2
    assert result.stderr.startswith("error: none.yaml: expected a region file")
    assert len(result.stderr.splitlines()) == 1
    assert "Traceback" in imctl("--debug", "validate", "none.yaml").stderr


def test_pki_init_and_show(tmp_path: Path) -> None:
    out = tmp_path / "pki"
    first = imctl("pki", "init", THREE, "--out", out)
    assert first.returncode == 0
    assert "region-keys.json" in first.stdout
    assert imctl("pki", "init", THREE, "--out", out).stdout.endswith("nothing was missing\n")
    rows = json.loads(imctl("pki", "show", out, "-o", "json").stdout)
    names = ["ca", "admin", "fra", "iad", "linkproxy", "operator", "sin", "viewer"]
    assert [row["name"] for row in rows] == names
    assert yaml.safe_load(imctl("pki", "show", out, "-o", "yaml").stdout) == rows
    table = imctl("pki", "show", out).stdout
    assert "PRIVATE" not in table
    assert "\x1b[" not in table


def test_without_a_deployment_every_command_says_so(tmp_path: Path) -> None:
    for command in (("status",), ("down",), ("kill", "fra"), ("token", "ann", "phone"), ("heal",)):
        result = imctl(*command, cwd=tmp_path)
        assert result.returncode == 1, command
        assert result.stderr == (
            "error: no deployment found in ./var; start one with `imctl up FILE`, or name its "
            "folder with --data\n"
        )


def test_up_says_which_port_is_in_use(tmp_path: Path) -> None:
    file = lab_region(tmp_path)
    gateway = load_region(file).spec.idcs[0].endpoints.gateway
    port = int(gateway.rpartition(":")[2])
    with socket.create_server(("127.0.0.1", port)):
        result = imctl("up", file, "--data", tmp_path / "data")
    assert result.returncode == 1
    assert f"cannot listen on 127.0.0.1:{port} (spec.idcs[0].endpoints.gateway)" in result.stderr
    assert "Address already in use" in result.stderr
    assert not (tmp_path / "data" / "run.json").exists()


def test_up_says_where_it_cannot_write(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("")
    result = imctl("up", THREE, "--data", blocked / "data")
    assert result.returncode == 1
    assert f"error: cannot write in {blocked / 'data'}: Not a directory" in result.stderr


def test_check_judges_a_history_and_refuses_what_is_none(tmp_path: Path) -> None:
    file = tmp_path / "h.jsonl"
    file.write_text("rubbish\n")
    result = imctl("check", file)
    assert result.returncode == 2
    assert result.stderr.startswith("error: ")


@pytest.mark.parametrize("name", ["tools/setup.py"])
def test_the_set_up_script_parses_on_old_pythons(name: str) -> None:
    import ast

    ast.parse((ROOT / name).read_text(), feature_version=(3, 6))


def test_an_old_python_gets_one_clear_line() -> None:
    code = (
        "import sys, runpy\n"
        "sys.version_info = (3, 9, 0, 'final', 0)\n"
        "sys.argv = ['setup.py', 'demo']\n"
        f"runpy.run_path({str(ROOT / 'tools' / 'setup.py')!r}, run_name='__main__')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=20, check=False
    )
    assert result.returncode == 1
    assert result.stderr.startswith("error: Python 3.11 or newer is needed")
    assert len(result.stderr.splitlines()) == 1
