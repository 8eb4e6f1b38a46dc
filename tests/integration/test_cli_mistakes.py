"""Mistakes that people make with the command line, and places where it is run: one clear error, the
right exit status, no traceback, and nothing half done."""

from __future__ import annotations

import ast
import errno
import json
import os
import socket
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from imcore.region.load import load_region
from imctl.testing.cli import IMCTL, ROOT, alone
from imctl.testing.lab import lab_region

THREE = ROOT / "regions" / "three-idc.yaml"
QUESTIONS = {"typer.confirm", "typer.prompt"}


imctl = partial(alone, timeout_s=60)


@pytest.mark.parametrize(
    ("arguments", "meant"), [(("stauts",), "'status'"), (("pki", "rotat"), "'rotate'")]
)
def test_a_misspelt_command_is_told_which_one_was_meant(
    arguments: tuple[str, ...], meant: str
) -> None:
    result = imctl(*arguments)
    assert (result.returncode, result.stdout) == (2, "")
    assert f"Did you mean {meant}" in result.stderr


@pytest.mark.parametrize("group", [(), ("drill",), ("op",), ("pki",), ("engines",), ("operator",)])
def test_help_says_in_whole_what_each_command_does(group: tuple[str, ...]) -> None:
    said = imctl(*group, "--help").stdout
    assert "..." not in said.partition("Commands:")[2]
    assert max(map(len, said.splitlines())) <= 80


def test_a_tab_is_called_a_tab(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text(THREE.read_text().replace("spec:\n", "spec:\n\tpartitions: 4\n", 1))
    result = imctl("validate", file)
    assert result.returncode == 2
    line = file.read_text().split("\t")[0].count("\n") + 1
    assert result.stderr == f"{file}:{line}: expected YAML, got a tab; put spaces in its place\n"


@pytest.mark.parametrize("command", [("drill", "list"), ("drill", "list", "-o", "json")])
def test_a_pipe_that_is_closed_early_is_no_error(command: tuple[str, ...]) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with subprocess.Popen(
        [IMCTL, *command], cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True
    ) as process:
        os.close(writing)
        assert process.stderr is not None
        said = process.stderr.read()
    assert (process.returncode, said) == (0, "")


@pytest.mark.parametrize("form", ["table", "json"])
def test_a_terminal_that_knows_few_letters_costs_those_letters_only(form: str) -> None:
    code = (
        "import sys; from imctl import main, output; from imctl.options import Format\n"
        "told = 'Zürich ✓'\n"
        f"main.app = lambda: output.emit({{'a': told}}, Format('{form}'), lambda: told)\n"
        "main.main()"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60,
        env=os.environ | {"PYTHONIOENCODING": "ascii"}, check=False,
    )  # fmt: skip
    assert (result.returncode, result.stderr) == (0, "")
    if form == "json":
        assert json.loads(result.stdout) == {"a": "Zürich ✓"}
    else:
        assert result.stdout == "Z\\xfcrich \\u2713\n"


def test_a_deployment_that_is_down_is_said_to_be_down(tmp_path: Path) -> None:
    folder = tmp_path / "var" / "three-idc"
    folder.mkdir(parents=True)
    (folder / "region.yaml").write_text(THREE.read_text())
    for given in ((), ("--data", folder)):
        result = imctl("status", *given, cwd=tmp_path)
        assert result.returncode == 1
        where = folder if given else "var/three-idc"
        assert result.stderr == (
            f"error: the deployment in {where} is down; start it with `imctl up FILE`\n"
        )
    # Somebody else's processes are not taken up over its data.
    (folder / "fra" / "data").mkdir(parents=True)
    result = imctl("attach", THREE, cwd=tmp_path)
    assert result.returncode == 1
    assert "has data of a deployment on this machine" in result.stderr
    assert not (folder / "run.json").exists()


def test_a_start_that_is_refused_changes_nothing(tmp_path: Path) -> None:
    region = lab_region(tmp_path)
    folder = tmp_path / "deployment"
    folder.mkdir()
    (folder / "region.yaml").write_text("# as it was\n" + region.read_text())
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    host, _, port = load_region(region).spec.idcs[1].endpoints.ipconf.rpartition(":")
    with socket.socket() as other:
        other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        other.bind((host, int(port)))
        other.listen()
        result = imctl("up", region, "--data", folder)
    assert result.returncode == 1
    assert f"cannot listen on {host}:{port}" in result.stderr
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert after == before


def test_a_full_disk_is_one_sentence_that_names_the_file(tmp_path: Path) -> None:
    code = (
        "import os, sys\n"
        "from pathlib import Path\n"
        "from imctl.target.runfile import RunFile\n"
        "def full(self, *_: object) -> None:\n"
        f"    raise OSError({errno.ENOSPC}, os.strerror({errno.ENOSPC}), '/there/run.json')\n"
        "RunFile.write = full\n"
        "from imctl.main import main\n"
        f"sys.argv = ['imctl', 'up', {str(lab_region(tmp_path))!r}, '--data', "
        f"{str(tmp_path / 'd')!r}]\n"
        "main()\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert result.returncode == 1
    assert result.stderr == "error: /there/run.json: No space left on device\n"


def test_a_sites_file_that_is_not_there_is_wrong_usage(tmp_path: Path) -> None:
    sites = tmp_path / "sites.yaml"
    two = ROOT / "regions" / "two-idc.yaml"
    result = imctl("deploy", two, "--sites", sites, "--data", tmp_path / "d")
    assert result.returncode == 2
    assert (
        result.stderr == f"error: {sites}: expected a sites file, got No such file or directory\n"
    )
    assert not (tmp_path / "d" / "pki").exists()


def test_a_second_core_without_one_of_its_own_is_wrong_usage(tmp_path: Path) -> None:
    result = imctl("up", THREE, "--standby", "--data", tmp_path / "d", cwd=tmp_path)
    assert result.returncode == 2
    assert result.stderr.endswith("--standby: expected only with --split\n")
    assert not (tmp_path / "d").exists()


def test_a_question_that_nobody_answers_says_so(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    (folder / "fra" / "data").mkdir(parents=True)
    (folder / "region.yaml").write_text(THREE.read_text())
    result = imctl("destroy", "--data", folder)
    assert result.returncode == 1
    assert result.stderr.endswith(
        "error: not confirmed, so nothing was done; in a script, confirm with an option (see "
        "--help)\n"
    )
    assert (folder / "region.yaml").exists()


def test_what_a_killed_command_had_half_written_is_destroyed_too(tmp_path: Path) -> None:
    """Each process writes to a file with its own number in the name; `rollout.json` aside."""
    folder = tmp_path / "d"
    folder.mkdir()
    (folder / "region.yaml").write_text(THREE.read_text())
    for name in (
        ".run.json.7.new",
        ".region.yaml.8.new",
        ".engines.json.9.new",
        ".rollout.json.new",
    ):
        (folder / name).touch()
    result = imctl("destroy", "--data", folder, "--yes-name", "three-idc")
    assert (result.returncode, result.stdout) == (0, "destroyed three-idc\n"), result
    assert not folder.exists()


def test_questions_are_no_part_of_a_result() -> None:
    """`imctl migrate kv -o json > file` had its question in the file, and showed nobody any."""
    asked = 0
    for path in sorted((ROOT / "imctl").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) in QUESTIONS:
                asked += 1
                keywords = {each.arg: ast.unparse(each.value) for each in node.keywords}
                assert keywords.get("err") == "True", f"{path}:{node.lineno}"
    assert asked >= 7


def test_ctrl_c_while_a_command_is_loaded_ends_it_without_a_traceback() -> None:
    """That takes a tenth of a second and more."""
    pressed = (
        "import sys\n"
        "class Pressed:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'imctl.main':\n"
        "            raise KeyboardInterrupt\n"
        "sys.meta_path.insert(0, Pressed())\n"
        "from imctl.entry import main\n"
        "main()\n"
    )
    done = subprocess.run([sys.executable, "-c", pressed], capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (130, b"", b"")
