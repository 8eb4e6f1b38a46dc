"""Results for people (tables) and for programs (JSON, YAML)."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import datetime
from typing import Any

from rich.console import Console, RenderableType

from imctl.options import Format


class _Screen(Console):
    def on_broken_pipe(self) -> None:
        """For `imctl.main`, as of any other output; rich itself would end the program."""
        raise BrokenPipeError


def console() -> Console:
    """Standard output; rich honours NO_COLOR and leaves colours out when it is no terminal. Ids
    such as d:a:b are no emoji, and what others have written is no markup."""
    return _Screen(highlight=False, soft_wrap=False, emoji=False, markup=False)


def notes() -> Console:
    """Standard error, for what goes with a result and is none: it never mixes with JSON."""
    return Console(stderr=True, highlight=False, soft_wrap=False, emoji=False, markup=False)


def time_of_day(at_ms: int) -> str:
    """By this machine's time zone."""
    return datetime.fromtimestamp(at_ms / 1000).strftime("%H:%M:%S")


def printable(text: str) -> str:
    """Without what could steer a terminal: the text is somebody else's."""
    return "".join(c if c.isprintable() else "�" for c in text)


def emit(document: Any, how: Format, table: Callable[[], RenderableType]) -> None:
    """``document``: what JSON and YAML show, plain values only."""
    if how is Format.JSON:
        print(json.dumps(document, indent=2, ensure_ascii=_few_letters()))
    elif how is Format.YAML:
        import yaml

        text = yaml.safe_dump(document, sort_keys=False, allow_unicode=not _few_letters())
        print(text, end="")
    else:
        console().print(table())


def emit_objects(objects: list[dict[str, Any]], how: Format) -> None:
    """Of Kubernetes, as `kubectl apply -f -` takes them; where JSON is not asked for, as YAML."""
    if how is Format.JSON:
        emit({"apiVersion": "v1", "kind": "List", "items": objects}, how, str)
        return
    import yaml

    print(yaml.safe_dump_all(objects, sort_keys=False, allow_unicode=not _few_letters()), end="")


def stream(document: Any, how: Format) -> None:
    """One of many documents: a line each as JSON, separated by --- as YAML."""
    if how is Format.YAML:
        print("---")
        emit(document, how, str)
    else:
        print(json.dumps(document, ensure_ascii=_few_letters()), flush=True)


def _few_letters() -> bool:
    """Whether standard output cannot take all letters; JSON and YAML can do with ASCII."""
    return not (sys.stdout.encoding or "").lower().startswith("utf")
