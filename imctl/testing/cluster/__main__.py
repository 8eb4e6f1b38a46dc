"""``python -m imctl.testing.cluster [packages]``: get what a test cluster needs, and build the
image; or print which of Debian's packages it needs and are not here."""

from __future__ import annotations

import sys

from imctl.errors import Failed
from imctl.testing.cluster import image, programs


def main() -> int:
    if sys.argv[1:] == ["packages"]:
        print(*programs.missing_packages())
        return 0
    try:
        programs.get()
        if lacking := programs.missing():
            raise Failed(lacking)
        with programs.getting():
            print(image.build())
    except Failed as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
