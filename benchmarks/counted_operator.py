"""``python -m benchmarks.counted_operator FILE ARGUMENT...``: `imctl` with these arguments; on
SIGUSR1 it writes into the file (JSON) how often it has looked at objects and called the API
server."""

from __future__ import annotations

import json
import signal
import sys
from collections import Counter
from pathlib import Path
from typing import Any

from imctl.main import main as imctl
from imctl.reconcile.cluster import Cluster
from imctl.reconcile.reconciler import Key, Reconciler

calls: Counter[str] = Counter()  # by verb and by what is in the path behind the namespace
looks: Counter[str] = Counter()  # by kind


def _count() -> None:
    text, reconcile = Cluster._text, Reconciler.reconcile

    async def counted_text(self: Cluster, verb: str, path: str, *rest: Any) -> str | None:
        plural = path.partition("/namespaces/")[2].split("/")[1:2]
        calls[f"{verb} {''.join(plural)}{' status' if path.endswith('/status') else ''}"] += 1
        return await text(self, verb, path, *rest)

    async def counted_look(self: Reconciler, key: Key) -> float | None:
        looks[key.kind] += 1
        return await reconcile(self, key)

    Cluster._text = counted_text  # type: ignore[assignment]
    Reconciler.reconcile = counted_look  # type: ignore[method-assign]


def main() -> None:
    file = Path(sys.argv[1])
    _count()

    def write(*_: object) -> None:
        new = file.with_suffix(".new")
        new.write_text(json.dumps({"calls": calls, "looks": looks}))
        new.replace(file)

    signal.signal(signal.SIGUSR1, write)
    sys.argv[:] = ["imctl", *sys.argv[2:]]
    imctl()


if __name__ == "__main__":
    main()
