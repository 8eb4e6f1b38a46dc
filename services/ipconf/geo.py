"""Which shard a client belongs to: CIDR (longest prefix wins) before ASN before country."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network, ip_network
from typing import NamedTuple

from imcore.addresses import Address, unmapped
from imcore.region.model import Geo


class Located(NamedTuple):
    """What a table says of an address; empty and 0: it does not know."""

    country: str = ""
    asn: int = 0


class Shards:
    """The region file's shards, indexed once."""

    def __init__(self, geo: Geo) -> None:
        networks: list[tuple[IPv4Network | IPv6Network, str]] = []
        self._asns: dict[int, str] = {}
        self._countries: dict[str, str] = {}
        for shard in geo.shards:
            networks += [(ip_network(text), shard.name) for text in shard.match.cidrs]
            for asn in shard.match.asns:
                self._asns.setdefault(asn, shard.name)
            for country in shard.match.countries:
                self._countries.setdefault(country, shard.name)
        # By version and length: one look-up a length, the longest first.
        self._lengths: dict[int, list[tuple[int, dict[int, str]]]] = {}
        for version in (4, 6):
            by_length: dict[int, dict[int, str]] = {}
            for network, name in networks:
                if network.version == version:
                    table = by_length.setdefault(network.prefixlen, {})
                    table.setdefault(int(network.network_address), name)
            self._lengths[version] = sorted(by_length.items(), reverse=True)
        self._default = geo.default

    def of(self, address: Address, located: Located) -> str:
        """The shard's name; the region's default shard when nothing matches."""
        plain = unmapped(address)
        bits, number = plain.max_prefixlen, int(plain)
        for length, table in self._lengths[plain.version]:
            name = table.get(number >> (bits - length) << (bits - length))
            if name is not None:
                return name
        return self._asns.get(located.asn) or self._countries.get(located.country) or self._default
