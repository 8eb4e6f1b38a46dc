"""The country table that the package geoip2fast carries, of IPv4 and IPv6, offline.

Once a process: the package keeps what it has loaded in its module, so a second table of another
file would change the answers of the first.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any


@cache
def _table() -> Any:
    import geoip2fast  # here: it takes a third of a second and 50 MB

    # By full path: a bare name would be looked for in the working directory first.
    path = Path(geoip2fast.__file__).with_name("geoip2fast-ipv6.dat.gz")
    return geoip2fast.GeoIP2Fast(geoip2fast_data_file=str(path))


def country_of(address: str) -> str:
    """ISO 3166 code; empty: a private network, or an unknown one."""
    code = str(_table().lookup(address).country_code)
    return code if code.isalpha() else ""
