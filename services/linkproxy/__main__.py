"""``python -m services.linkproxy``: the WAN links of a region file."""

from imcore.starting import uncollected

with uncollected():
    from services.linkproxy.process import main

if __name__ == "__main__":
    main()
