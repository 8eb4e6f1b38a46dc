"""A process that lives as long as the operator that started it may write."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

from imctl.drill.leased import watch


def test_it_ends_when_its_time_is_over() -> None:
    read, write = os.pipe()
    ended = threading.Event()
    began = time.monotonic()
    watcher = threading.Thread(target=watch, args=(read, ended.set, 60.0))
    watcher.start()
    os.write(write, b"60.0\n0.")  # half a line says nothing yet
    time.sleep(0.05)
    assert not ended.is_set()
    os.write(write, b"1\n")
    watcher.join(30)
    assert ended.is_set() and time.monotonic() - began < 30
    os.close(write)
    os.close(read)


def test_it_ends_when_nobody_is_there_any_more() -> None:
    read, write = os.pipe()
    ended = threading.Event()
    watcher = threading.Thread(target=watch, args=(read, ended.set, 60.0))
    watcher.start()
    os.write(write, b"60\n")
    os.close(write)
    watcher.join(5)
    assert ended.is_set()
    os.close(read)


def test_it_stands_behind_the_operator_where_cores_are_short() -> None:
    """It makes a load beside the process whose lease it lives by."""
    program = (
        "import os; from imctl import main; from imctl.drill import leased;"
        "main.main = lambda: print(os.nice(0)); leased.main()"
    )
    read, write = os.pipe()
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, stdin=read, stdout=subprocess.PIPE, text=True, check=True)
    os.close(write)
    os.close(read)
    assert int(done.stdout) >= min(19, os.nice(0) + 5)
