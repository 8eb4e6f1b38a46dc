"""``python -m services.witness``: a registry and a vote, without traffic."""

import sys

from imcore.starting import uncollected

with uncollected():
    from services.witness.process import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
