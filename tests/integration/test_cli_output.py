"""What the command line prints where: on terminals, into pipes, and to shells that complete."""

from __future__ import annotations

import os
import pty
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import impossible_here

ROOT = Path(__file__).resolve().parents[2]
IMCTL = Path(sys.executable).with_name("imctl")
NOTED = ("size", "--file", "docs/capacity.yaml")  # ends with a note, in yellow
COLOUR = re.compile(r"\x1b\[[0-9;]*(?:3[0-8]|4[0-8]|9[0-7]|10[0-7])[;m]")
_SAID = ("NO_COLOR", "FORCE_COLOR", "CLICOLOR_FORCE", "PY_COLORS", "TTY_COMPATIBLE", "COLUMNS")


def environment(**more: str) -> dict[str, str]:
    """Without what the caller's terminal says about colours and width."""
    clean = {name: value for name, value in os.environ.items() if name not in _SAID}
    return clean | {"TERM": "xterm-256color", "PATH": f"{IMCTL.parent}:{clean['PATH']}"} | more


def on_a_terminal(arguments: tuple[str, ...], **more: str) -> str:
    """What a terminal of 80 columns is sent."""
    ours, theirs = pty.openpty()
    child = subprocess.Popen(
        [IMCTL, *arguments],
        cwd=ROOT,
        env=environment(COLUMNS="80", **more),
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    sent = b""
    while True:
        try:
            piece = os.read(ours, 4096)
        except OSError:  # Linux: the other side is closed
            break
        if not piece:
            break
        sent += piece
    os.close(ours)
    assert child.wait(20) == 0
    return sent.decode()


def piped(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [IMCTL, *arguments],
        cwd=ROOT,
        env=environment(**more),
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_colours_on_a_terminal_and_none_with_no_color() -> None:
    assert COLOUR.search(on_a_terminal(NOTED))
    assert not COLOUR.search(on_a_terminal(NOTED, NO_COLOR="1"))


@pytest.mark.parametrize(
    "arguments",
    [
        NOTED,
        ("--help",),
        ("switchover", "--help"),
        ("engines", "doctor"),
        ("validate", "regions/three-idc.yaml", "docs/capacity.yaml"),
        ("status", "--data", "none"),
        ("nonsense",),
    ],
    ids=" ".join,
)
def test_a_pipe_gets_no_escape_codes(arguments: tuple[str, ...]) -> None:
    result = piped(*arguments)
    assert result.stdout or result.stderr
    assert "\x1b" not in result.stdout + result.stderr


@pytest.mark.parametrize("columns", [80, 120])
@pytest.mark.parametrize("arguments", [("--help",), ("drain", "--help"), NOTED], ids=" ".join)
def test_lines_are_no_longer_than_the_terminal(arguments: tuple[str, ...], columns: int) -> None:
    result = piped(*arguments, COLUMNS=str(columns))
    assert result.returncode == 0
    assert max(map(len, result.stdout.splitlines())) <= columns


# -------------------------------------------------------------------------------- completion


def script(shell: str) -> str:
    result = piped(_IMCTL_COMPLETE=f"source_{shell}")
    assert (result.returncode, result.stderr) == (0, "")
    return result.stdout


@pytest.mark.parametrize(
    ("shell", "hooks"),
    [("bash", "complete -o default -F"), ("zsh", "compdef"), ("fish", "complete")],
)
def test_each_shell_gets_its_script(shell: str, hooks: str, tmp_path: Path) -> None:
    text = script(shell)
    assert hooks in text
    assert f"_IMCTL_COMPLETE=complete_{shell}" in text
    if found := shutil.which(shell):
        file = tmp_path / "completion"
        file.write_text(text)
        subprocess.run([found, "-n", file], check=True, timeout=10)


# Each calls what the script has registered, for the words in $2, and prints what it offers.
PROGRAMS = {
    "bash": """
        source "$1"; registered=$(complete -p imctl); function=${registered##*-F }
        function=${function%% *}; COMP_WORDS=($2); COMP_CWORD=$((${#COMP_WORDS[@]} - 1))
        "$function" imctl "${COMP_WORDS[COMP_CWORD]}"; printf "%s\\n" "${COMPREPLY[@]}"
    """,
    # What it hands to zsh's own completion of arguments: (("name":"what it does" ...)).
    "zsh": """
        compdef() { registered=$1 }; _arguments() { print -r -- "$@" }
        source "$1"; words=(${=2}); CURRENT=$#words; $registered
    """,
    "fish": """source $argv[1]; complete -C $argv[2]""",
}
FLAGS = {"bash": ("--norc",), "zsh": ("-f",), "fish": ("--no-config",)}


def completed_by(shell: str, words: str, tmp_path: Path) -> list[str]:
    found = shutil.which(shell)
    if not found:
        impossible_here(f"no {shell} on this machine", f"`apt-get install {shell}`")
    file = tmp_path / f"completion.{shell}"
    file.write_text(script(shell))
    named = () if shell == "fish" else (shell,)  # $0
    result = subprocess.run(
        [found, *FLAGS[shell], "-c", PROGRAMS[shell], *named, file, words],
        env=environment(HOME=str(tmp_path)),
        capture_output=True,
        text=True,
        timeout=20,
        check=True,
    )
    if shell == "zsh":
        return re.findall(r'"([^"]+)"(?::"[^"]*")?', result.stdout)
    return [line.split("\t")[0] for line in result.stdout.splitlines()]


@pytest.mark.parametrize("shell", PROGRAMS)
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("imctl fai", ["failback", "failover"]),
        ("imctl op sh", ["show"]),
        ("imctl switchover --dry", ["--dry-run"]),
        ("imctl size -o js", ["json"]),
    ],
)
def test_a_real_shell_completes_commands_options_and_values(
    shell: str, words: str, offered: list[str], tmp_path: Path
) -> None:
    assert sorted(completed_by(shell, words, tmp_path)) == offered


def test_zsh_and_fish_are_offered_the_same() -> None:
    asked = {"_TYPER_COMPLETE_ARGS": "imctl fai"}
    zsh = piped(_IMCTL_COMPLETE="complete_zsh", **asked).stdout
    assert re.findall(r'"(\w+)":', zsh) == ["failover", "failback"]
    fish = piped(
        _IMCTL_COMPLETE="complete_fish", _TYPER_COMPLETE_FISH_ACTION="get-args", **asked
    ).stdout
    assert [line.split("\t")[0] for line in fish.splitlines()] == ["failover", "failback"]
