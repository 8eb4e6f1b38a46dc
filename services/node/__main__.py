"""``python -m services.node``: the process of one IDC, with all roles or some of them."""

import sys

from imcore.starting import uncollected

with uncollected():
    from services.node.process import main

if __name__ == "__main__":
    sys.exit(main())
