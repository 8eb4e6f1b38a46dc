"""`imctl` as people run it: a process on a deployment's folder, on 80 columns, without colours."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from imctl.testing import schema

ROOT = Path(__file__).resolve().parents[2]
IMCTL = Path(sys.executable).with_name("imctl")
TIMEOUT_S = 180.0


def alone(
    *arguments: object,
    cwd: Path = ROOT,
    environment: Mapping[str, str] = MappingProxyType({}),
    timeout_s: float = 20.0,
) -> subprocess.CompletedProcess[str]:
    """Of no deployment but one that ``arguments`` name, whatever this machine's ``IMCTL_...`` say,
    and with nobody at its terminal. Raises subprocess.TimeoutExpired."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("IMCTL_")}
    return subprocess.run(
        [IMCTL, *map(str, arguments)],
        cwd=cwd,
        env=clean | {"COLUMNS": "80"} | dict(environment),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
        stdin=subprocess.DEVNULL,
    )


def begin(data: Path, *arguments: object) -> subprocess.Popen[str]:
    """Its output is kept; the caller waits for its end."""
    return subprocess.Popen(
        [IMCTL, *map(str, arguments)],
        env=os.environ | {"IMCTL_DATA": str(data), "COLUMNS": "80", "NO_COLOR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def imctl(data: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Raises subprocess.TimeoutExpired; jsonschema.ValidationError for JSON that is not as it is
    published."""
    process = begin(data, *arguments)
    try:
        out, errors = process.communicate(timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
        raise
    schema.check_output(arguments, out)
    return subprocess.CompletedProcess([], process.returncode, out, errors)


def ok(data: Path, *arguments: object) -> str:
    """What it printed; it must have ended well."""
    result = imctl(data, *arguments)
    assert result.returncode == 0, (arguments, result.stdout, result.stderr)
    return result.stdout
