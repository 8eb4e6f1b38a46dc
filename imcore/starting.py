"""How a program imports what it is made of."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def uncollected() -> Iterator[None]:
    """No garbage is collected in the block, and what it makes is never looked at again. Around
    imports: they make some hundred thousand objects that stay, and to walk these again and again
    (the last time when the process ends) was a quarter of the start of a node or a command."""
    collecting = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if collecting:
            gc.enable()
