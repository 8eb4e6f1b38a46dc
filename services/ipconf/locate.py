"""What a table says of an address: adapters of the bundled country table and of MaxMind files."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any, Protocol

from imcore.addresses import Address, unmapped
from imcore.countries import country_of
from imcore.errors import BadInput
from services.ipconf.geo import Located


class Locator(Protocol):
    def locate(self, address: Address) -> Located: ...


class CountryTable:
    """The table that the package geoip2fast carries: countries of IPv4 and IPv6, offline. It has
    no AS numbers (a region file that matches ASNs needs a MaxMind file)."""

    def __init__(self) -> None:
        country_of("0.0.0.0")  # noqa: S104 - loads the table now, not when the first client waits

    def locate(self, address: Address) -> Located:
        return Located(country_of(str(unmapped(address))))


class MaxMindFile:
    """A file in MaxMind's format, with countries, AS numbers or both. Raises BadInput."""

    def __init__(self, path: Path) -> None:
        import maxminddb

        try:
            self._reader = maxminddb.open_database(path, maxminddb.MODE_MMAP)
        except (OSError, TypeError, ValueError, maxminddb.InvalidDatabaseError) as error:
            raise BadInput(f"{path}: expected a MaxMind-format file: {error}") from error

    def locate(self, address: Address) -> Located:
        found = self._reader.get(unmapped(address))
        row: dict[str, Any] = found if isinstance(found, dict) else {}
        country = row.get("country") or row.get("registered_country") or {}
        return Located(
            str(country.get("iso_code", "")), int(row.get("autonomous_system_number", 0))
        )

    def close(self) -> None:
        self._reader.close()


class Cached:
    """The same addresses ask again and again."""

    def __init__(self, inner: Locator) -> None:
        self.locate = lru_cache(maxsize=16_384)(inner.locate)


def open_locator(database: str | None, base: Path) -> Locator:
    """By the region file's ``geo.database``, relative to ``base``. Raises BadInput."""
    return Cached(CountryTable() if database is None else MaxMindFile(base / database))
