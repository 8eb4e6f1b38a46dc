"""What `imctl logs` shows of the log files of a deployment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from imcore.logs import as_text, parse
from imctl.errors import Failed


@dataclass(frozen=True, slots=True)
class Shown:
    """``trace``: only lines of this trace id; empty: all. ``named``: each line with its unit."""

    trace: str
    as_json: bool
    named: bool

    def end(self, files: Mapping[str, Path], count: int) -> dict[str, int]:
        """Print the last lines of each (0: none); returns where each file ends. Raises Failed."""
        ends, found = {}, []
        for name, path in files.items():
            data = _read(path, 0)
            ends[name] = len(data)
            lines = [line for line in _lines(data) if self._wanted(line)]
            found += [(name, line) for line in lines[-count or len(lines) :]]
        if self.trace:
            found.sort(key=lambda one: _time(one[1]))
        for name, line in found:
            self._print(name, line)
        return ends

    def go_on(self, name: str, path: Path, offset: int) -> int:
        """Print whole new lines; returns the new offset. Raises Failed."""
        whole, newline, _ = _read(path, offset).rpartition(b"\n")
        for line in _lines(whole) if newline else ():
            if self._wanted(line):
                self._print(name, line)
        return offset + len(whole) + len(newline)

    def _wanted(self, line: str) -> bool:
        if not self.trace:
            return True
        return self.trace in line and (parse(line) or {}).get("trace_id") == self.trace

    def _print(self, name: str, line: str) -> None:
        if self.as_json:
            found = parse(line) or {"message": line}
            print(json.dumps({"unit": name} | found, ensure_ascii=False), flush=True)
            return
        for each in as_text(line).splitlines():
            print(f"{name}: {each}" if self.named else each, flush=True)


def _lines(data: bytes) -> Iterator[str]:
    for line in data.splitlines():
        yield line.decode(errors="replace")


def _time(line: str) -> str:
    return str((parse(line) or {}).get("time", ""))


def _read(path: Path, offset: int) -> bytes:
    try:
        with path.open("rb") as file:
            file.seek(offset)
            return file.read()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise Failed(f"cannot read {path}: {error.strerror}") from error
