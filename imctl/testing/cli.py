"""`imctl` as people run it: a process on a deployment's folder, on 80 columns, without colours."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from imctl.testing import schema

IMCTL = Path(sys.executable).with_name("imctl")
TIMEOUT_S = 90.0


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
