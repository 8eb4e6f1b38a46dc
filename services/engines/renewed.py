"""What is made of an engine's certificate files, made anew when they are others: an operator renews
them under a running process, and connections that are made from then on show the new ones."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from imcore.errors import BadInput

log = logging.getLogger("im.tls")

Marks = list[tuple[int, int, int]]
_T = TypeVar("_T")


def load_pair(context: ssl.SSLContext, certificate: Path, key: Path | None, field: str) -> None:
    """``field``: of the region file, for the sentence. Raises BadInput."""
    try:
        context.load_cert_chain(certificate, key)
    except (OSError, ssl.SSLError) as error:
        raise BadInput(
            f"{certificate} and {key}: expected a PEM certificate and its key, got: {error} "
            f"({field})"
        ) from error


class Renewed(Generic[_T]):
    """``load`` raises BadInput for files that do not serve: at first to whoever makes this, later
    (a renewal that is half done) what was loaded last goes on."""

    def __init__(self, paths: Sequence[Path], load: Callable[[], _T]) -> None:
        self._paths = paths
        self._load = load
        self._seen = self._marks()
        self._problem = ""
        self.value = load()

    def look(self) -> bool:
        """Whether ``value`` is another one since the last look. Never raises."""
        marks = self._marks()
        if marks == self._seen:
            return False
        try:
            found = self._load()
        except BadInput as error:
            if str(error) != self._problem:
                self._problem = str(error)
                log.warning("new certificate files are not taken yet: %s", error)
            return False
        if self._marks() != marks:
            return False  # being changed; the next look sees them whole
        self._seen, self.value, self._problem = marks, found, ""
        log.info("%s are used as they are now", ", ".join(map(str, self._paths)))
        return True

    def _marks(self) -> Marks:
        """None of those that are not there: ``load`` says so."""
        marks = []
        for path in self._paths:
            try:
                found = path.stat()
            except OSError:
                continue
            marks.append((found.st_mtime_ns, found.st_size, found.st_ino))
        return marks
