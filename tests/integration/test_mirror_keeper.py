"""The process that keeps a MirrorMaker working, around stand-ins for its JVM: what it does when
that ends, says that it has given up, or is to end. Around the real one: tests/e2e."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from imctl.engines.mirror_watch import GIVEN_UP


def keeper(script: str, log: Path) -> subprocess.Popen[bytes]:
    options = ["--idc=fra", "--sources=iad", "--brokers=127.0.0.1:1"]  # nobody answers there
    module = [sys.executable, "-m", "imctl.engines.mirror_keeper"]
    with log.open("wb") as file:
        return subprocess.Popen(
            [*module, *options, "--", "sh", "-c", script],
            stdout=file,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )


def until(log: Path, words: str, times: int, seconds: float = 60.0) -> str:
    deadline = time.monotonic() + seconds
    while (text := log.read_text()).count(words) < times:
        assert time.monotonic() < deadline, text
        time.sleep(0.05)
    return text


def test_one_that_gives_a_task_up_is_started_again(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = keeper(f"echo begin $$; echo '{GIVEN_UP}'; exec sleep 60", log)
    try:
        said = until(log, "begin", 2)
        assert "started again in 1 s: it has given a task up" in said
        first = int(said.partition("begin ")[2].split()[0])
        assert not Path(f"/proc/{first}").exists(), "the first one was ended"
    finally:
        process.terminate()
    assert process.wait(40) == 0
    last = int(log.read_text().rpartition("begin ")[2].split()[0])
    assert not Path(f"/proc/{last}").exists(), "and the last one, with the keeper"


def test_one_that_ends_later_is_started_again_and_wrong_settings_are_told(tmp_path: Path) -> None:
    log = tmp_path / "log"
    process = keeper("echo wrong; exit 3", log)
    assert process.wait(40) == 3
    assert log.read_text().count("wrong") == 1
    clean = keeper("echo begin", log)
    try:
        until(log, "begin", 2)
    finally:
        os.killpg(clean.pid, signal.SIGKILL)
        clean.wait()
