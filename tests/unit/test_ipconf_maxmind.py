"""MaxMind-format files: a small one is made here by the published format, and must be read."""

from __future__ import annotations

import struct
from ipaddress import IPv6Network, ip_address, ip_network
from pathlib import Path
from typing import Any

import pytest

from imcore.errors import BadInput
from services.ipconf.geo import Located
from services.ipconf.locate import MaxMindFile, open_locator

NETWORKS: dict[str, dict[str, Any]] = {
    "81.2.69.0/24": {"country": {"iso_code": "GB"}, "autonomous_system_number": 20712},
    "81.2.69.128/25": {"country": {"iso_code": "IE"}},
    "8.8.8.0/24": {"registered_country": {"iso_code": "US"}},
    "9.9.9.0/24": {"autonomous_system_number": 4_200_000_000},
    "2001:db8::/32": {"country": {"iso_code": "DE"}, "autonomous_system_number": 64500},
}
RECORD_BYTES = 3
MARKER = b"\xab\xcd\xefMaxMind.com"


def encoded(value: object) -> bytes:
    """A value of the data section: a control byte with type and size, then the value."""
    match value:
        case str():
            text = value.encode()
            return bytes([2 << 5 | len(text)]) + text
        case int():
            return bytes([6 << 5 | 4]) + struct.pack(">I", value)
        case dict():
            pairs = b"".join(encoded(part) for pair in value.items() for part in pair)
            return bytes([7 << 5 | len(value)]) + pairs
        case []:
            return bytes([0, 11 - 7])  # an extended type: its number less 7 follows
    raise TypeError(value)


def as_v6(text: str) -> IPv6Network:
    """IPv4 networks lie below ::/96."""
    network = ip_network(text)
    if isinstance(network, IPv6Network):
        return network
    return IPv6Network((int(network.network_address), 96 + network.prefixlen))


def mmdb(rows: dict[str, dict[str, Any]]) -> bytes:
    """A binary tree by address bits, whose leaves are offsets of rows. Rows: widest first."""
    nodes: list[list[int | bytes | None]] = [[None, None]]
    for text, row in sorted(rows.items(), key=lambda item: as_v6(item[0]).prefixlen):
        network = as_v6(text)
        bits = format(int(network.network_address), "0128b")[: network.prefixlen]
        at = 0
        for bit in map(int, bits[:-1]):
            below = nodes[at][bit]
            if not isinstance(below, int):  # a wider network's row goes on in both halves
                nodes.append([below, below])
                below = nodes[at][bit] = len(nodes) - 1
            at = below
        nodes[at][int(bits[-1])] = encoded(row)
    data, tree = b"", b""
    for node in nodes:
        for record in node:
            number = record if isinstance(record, int) else len(nodes)
            if isinstance(record, bytes):
                number += 16 + len(data)
                data += record
            tree += number.to_bytes(RECORD_BYTES, "big")
    about = {
        "node_count": len(nodes),
        "record_size": 8 * RECORD_BYTES,
        "ip_version": 6,
        "binary_format_major_version": 2,
        "binary_format_minor_version": 0,
        "build_epoch": 0,
        "database_type": "test",
        "languages": [],
        "description": {},
    }
    return tree + bytes(16) + data + MARKER + encoded(about)


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "table.mmdb"
    path.write_bytes(mmdb(NETWORKS))
    return path


@pytest.mark.parametrize(
    ("address", "located"),
    [
        ("81.2.69.1", Located("GB", 20712)),
        ("81.2.69.200", Located("IE", 0)),
        ("::ffff:81.2.69.200", Located("IE", 0)),
        ("8.8.8.8", Located("US", 0)),
        ("9.9.9.9", Located("", 4_200_000_000)),
        ("2001:db8::7", Located("DE", 64500)),
        ("81.2.70.1", Located("", 0)),
        ("2001:db9::1", Located("", 0)),
    ],
)
def test_countries_and_as_numbers_are_read(table: Path, address: str, located: Located) -> None:
    file = MaxMindFile(table)
    assert file.locate(ip_address(address)) == located
    file.close()


def test_the_region_file_names_it_relative_to_itself(table: Path) -> None:
    locator = open_locator("table.mmdb", table.parent)
    assert locator.locate(ip_address("81.2.69.1")) == Located("GB", 20712)


def test_a_file_without_metadata_gets_one_clear_line(table: Path) -> None:
    table.write_bytes(MARKER + encoded({}))
    with pytest.raises(BadInput, match=f"{table}: expected a MaxMind-format file"):
        MaxMindFile(table)


def test_a_file_that_was_cut_short_gets_one_clear_line(table: Path) -> None:
    table.write_bytes(table.read_bytes()[:-40])
    with pytest.raises(BadInput, match="expected a MaxMind-format file"):
        MaxMindFile(table)
