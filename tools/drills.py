"""``python -m tools.drills [NAME...]``: every ready-made drill, or these, on its own deployment;
reports in build/drills. Exit status 1 unless all pass. After a drill that does not pass the next
one gets a fresh deployment: the one before is kept, stopped, beside the reports."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from imcore.runtime import SystemClock
from imctl import startup
from imctl.drill import model
from imctl.target.local import Local
from imctl.testing.lab import lab_region

OUT = Path("build/drills")
IMCTL = str(Path(sys.executable).with_name("imctl"))
VERDICTS = {0: "pass", 3: "refused", 4: "inconclusive", 5: "deviated", 6: "aborted"}


class Deployment:
    """One at a time, in a folder of its own."""

    def __init__(self) -> None:
        self._target: Local | None = None
        self._count = 0

    def ready(self) -> Path:
        if self._target is None:
            self._count += 1
            folder = OUT / f"deployment-{time.strftime('%H%M%S')}-{self._count}"
            folder.mkdir(parents=True)
            target = Local.prepare(lab_region(folder), folder / "data", True, SystemClock())
            startup.bring_up(target, lambda name, serving: None)
            self._target = target
        return self._target.data

    def stop(self) -> None:
        if self._target is not None:
            with startup.deaf():
                self._target.look_again()
                self._target.stop()
        self._target = None


def run(names: list[str]) -> dict[str, str]:
    """The verdict of each."""
    deployment, verdicts = Deployment(), {}
    try:
        with startup.interruptible():
            for name in names:
                data = deployment.ready()
                command = [
                    IMCTL,
                    "drill",
                    "run",
                    name,
                    "--yes",
                    "--data",
                    str(data),
                    "-o",
                    str(OUT / name),
                ]
                status = subprocess.run(command, check=False).returncode
                verdicts[name] = VERDICTS.get(status, f"failed ({status})")
                if status:
                    deployment.stop()
    finally:
        deployment.stop()
    return verdicts


def main() -> None:
    known = [path.stem for path in model.listed()]
    names = sys.argv[1:] or known
    if unknown := [name for name in names if name not in known]:
        raise SystemExit(f"error: expected names of {', '.join(known)}; got {', '.join(unknown)}")
    verdicts = run(names)
    for name, verdict in verdicts.items():
        print(f"{name:22} {verdict}")
    raise SystemExit(0 if set(verdicts.values()) == {"pass"} else 1)


if __name__ == "__main__":
    main()
