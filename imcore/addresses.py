"""Client addresses: which count as one, and which are in a list of networks. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address

Address = IPv4Address | IPv6Address


def unmapped(address: Address) -> Address:
    """An IPv4 client of a dual-stack listener comes as ::ffff:a.b.c.d."""
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def inside(address: Address, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    plain = unmapped(address)
    return any(plain.version == network.version and plain in network for network in networks)


def listed(text: str, networks: Sequence[IPv4Network | IPv6Network]) -> bool:
    """Whether this is an address inside one of them; what is no address is not."""
    if not networks:
        return False
    try:
        return inside(ip_address(text), networks)
    except ValueError:
        return False


def neighbourhood(address: str) -> str:
    """What counts as one address: of IPv6 the network, since whoever has one address there has them
    all."""
    if ":" not in address:
        return address
    try:
        return ip_address(address).packed[:8].hex()
    except ValueError:
        return address
