"""What is called first, before anything that takes long to import: Ctrl-C ends a command that is
still being loaded as it ends any other."""

from __future__ import annotations

INTERRUPTED = 130


def main() -> None:
    try:
        from imctl.main import main as run
    except KeyboardInterrupt:
        raise SystemExit(INTERRUPTED) from None
    run()
