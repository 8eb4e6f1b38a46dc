"""From an address to a shard."""

from __future__ import annotations

from ipaddress import ip_address
from pathlib import Path

import pytest

from imcore.attest import RegionKeys
from imcore.errors import BadInput
from imcore.region.load import load_region
from imcore.region.model import Geo, Match, Shard
from services.ipconf.geo import Located, Shards
from services.ipconf.locate import CountryTable, MaxMindFile
from services.ipconf.reports import EVERY_S, UIDS_MAX, WINDOW_S, Reports
from services.ipconf.ticket import Ticket, mint, read
from services.loadgen.population import public_country

GEO = Geo(
    default="rest",
    shards=[
        Shard(name="de", match=Match(countries=["DE"]), weights={"fra": 1}),
        Shard(name="as", match=Match(asns=[64500]), weights={"fra": 1}),
        Shard(name="wide", match=Match(cidrs=["10.0.0.0/8", "2001:db8::/32"]), weights={"fra": 1}),
        Shard(name="narrow", match=Match(cidrs=["10.1.0.0/16"]), weights={"fra": 1}),
        Shard(name="rest", weights={"fra": 1}),
    ],
)


@pytest.mark.parametrize(
    ("address", "located", "shard"),
    [
        ("10.1.2.3", Located("DE", 64500), "narrow"),
        ("10.2.2.3", Located("DE", 64500), "wide"),
        ("::ffff:10.1.2.3", Located(), "narrow"),
        ("2001:db8::1", Located(), "wide"),
        ("11.0.0.1", Located("DE", 64500), "as"),
        ("11.0.0.1", Located("DE", 1), "de"),
        ("11.0.0.1", Located("FR", 1), "rest"),
        ("0.0.0.0", Located(), "rest"),
    ],
)
def test_longest_cidr_then_asn_then_country(address: str, located: Located, shard: str) -> None:
    assert Shards(GEO).of(ip_address(address), located) == shard


def test_the_bundled_table_places_real_networks() -> None:
    table = CountryTable()
    places = {
        "81.2.69.142": "GB",
        "8.8.8.8": "US",
        "::ffff:8.8.8.8": "US",
        "2a00:1450:4001::1": "DE",
        "10.0.0.1": "",
    }
    assert public_country("8.8.8.8") == "US"  # whoever else looks there shares the table
    found = {address: table.locate(ip_address(address)).country for address in places}
    assert found == places
    region = load_region(Path(__file__).parents[2] / "regions" / "three-idc.yaml")
    shards = Shards(region.spec.geo)
    assert shards.of(ip_address("8.8.8.8"), Located("US")) == "americas"


def test_what_is_no_maxmind_file_gets_one_clear_line(tmp_path: Path) -> None:
    (tmp_path / "table.mmdb").write_bytes(b"rubbish")
    for name in ("table.mmdb", "missing.mmdb"):
        with pytest.raises(BadInput, match="MaxMind"):
            MaxMindFile(tmp_path / name)


def test_tickets_verify_and_forgeries_do_not() -> None:
    keys, others = RegionKeys({1: b"k" * 32}, 1), RegionKeys({1: b"x" * 32}, 1)
    text = mint(keys, Ticket("europe", "alice", 7)).encode()
    assert read(keys, text) == Ticket("europe", "alice", 7)
    for forged in (b"", b"x", text[:-2], text + b"aa", mint(others, Ticket("a", "b", 1)).encode()):
        assert read(keys, forged) is None


def test_reports_count_distinct_uids_for_a_while() -> None:
    reports = Reports(["fra", "iad"])
    assert reports.add("u1", ["fra", "fra", "mars"], 0.0)
    assert not reports.add("u1", ["iad"], EVERY_S / 2)
    assert reports.add("u1", ["fra"], EVERY_S)
    assert reports.add("u2", ["fra"], 1.0)
    assert reports.counts(1.0) == {"fra": 2, "iad": 0}
    assert reports.counts(EVERY_S + WINDOW_S + 0.1) == {"fra": 1, "iad": 0}


def test_new_reporters_are_heard_however_many_there_were_long_ago() -> None:
    """Of an ipconf in a process of its own, which only tells what came since."""
    reports, now = Reports(["fra"]), 0.0
    for number in range(UIDS_MAX):
        now += 1.0
        assert reports.add(f"u{number}", ["fra"], now)
        if number % 100 == 0:
            reports.since(now - 0.5)
    assert reports.add("new", ["fra"], now + 1)
    assert reports.since(now + 1) == {"fra": ["new"]}
