"""The simulated regions: three IDCs on three continents, or two and a witness on the third.

Clients are at home by their first octet.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from imcore.region.model import Region

PLACES = ("fra", "iad", "sin")
COUNTRIES = {"fra": ["DE"], "iad": ["US"], "sin": ["SG"]}
DELAY_MS = {("fra", "iad"): 45, ("fra", "sin"): 80, ("iad", "sin"): 110}
ACCESS_MS = 8  # from a client to the IDC that is next to it
_SHARDS = {"fra": "europe", "iad": "americas", "sin": "asia"}
_PLACES = {
    "fra": {"city": "Frankfurt", "country": "DE", "latitude": 50.11, "longitude": 8.68},
    "iad": {"city": "Ashburn", "country": "US", "latitude": 39.04, "longitude": -77.49},
    "sin": {"city": "Singapore", "country": "SG", "latitude": 1.35, "longitude": 103.82},
}


OPERATOR = "near-iad"  # where the operator sits
WITNESS_EVERY = 4  # so many seeds, one has two IDCs and a witness
FRESH_FROM = 1_000_000  # seeds from here on are those that nobody has named
SPLIT_EVERY = 3  # of so many of them one has roles that run apart
ANTI_FLAP_MS = 8_000  # so that an IDC is emptied several times in a minute
# So low that a burst meets them: some of it is refused, and what comes behind it is not.
LIMITS = {
    "conversation_in_flight": 3,
    "user_requests_per_s": 40,
    # Groups of four and more are huge ones, which a burst makes hot.
    "group_merge_deliveries_per_s": 4,
    "group_signal_deliveries_per_s": 12,
    "group_window_ms": 100,
    "group_signal_ms": 500,
}
HUGE_ABOVE = 3
IPCONFS_ABOVE = 20  # the first port of an IDC, when there are several


class Layout(NamedTuple):
    """``witness``: the place of one, or empty. ``tight``: limits and anti-flap are such that a
    minute of load meets them. ``split``: gateways are processes beside the core of their IDC, and
    so are that many ``routes`` and ``ipconfs`` (0: ipconf runs in the core). ``standby``, of a
    split one: a second core of each IDC waits until the first is gone. ``files``: clients send
    some. ``sealed``: some of what is said is encrypted."""

    idcs: tuple[str, ...] = PLACES
    witness: str = ""
    tight: bool = False
    split: bool = False
    routes: int = 0
    ipconfs: int = 0
    standby: bool = False
    files: bool = False
    sealed: bool = False

    @property
    def voters(self) -> tuple[str, ...]:
        return (*self.idcs, self.witness) if self.witness else self.idcs

    def home_of(self, address: str) -> str:
        """The IDC that an IPv4 address is at home in."""
        return self.idcs[int(address.partition(".")[0]) % len(self.idcs)]

    def country_of(self, address: str) -> str:
        return COUNTRIES[self.home_of(address)][0]


def layout_of(seed: int) -> Layout:
    layout = Layout(tight=True)
    if seed % WITNESS_EVERY == WITNESS_EVERY - 1:
        layout = Layout(PLACES[:2], PLACES[2], tight=True)
    if seed < FRESH_FROM:  # named in tests, they stay the worlds that they were
        return layout
    if seed % SPLIT_EVERY == 0:
        number = seed // SPLIT_EVERY
        layout = layout._replace(
            split=True, routes=number % 3, ipconfs=2 * (number % 2), standby=number // 2 % 2 == 1
        )
    return layout._replace(files=True, sealed=True)


def region(layout: Layout, gateways: int = 2) -> Region:
    def endpoints(number: int) -> dict[str, str]:
        port = 17_000 + 100 * number
        return {
            "gateway": f"127.0.0.1:{port + 10}",
            "ipconf": f"127.0.0.1:{port + (IPCONFS_ABOVE if layout.ipconfs else 1)}",
            "peer": f"127.0.0.1:{port + 2}",
            "admin": f"127.0.0.1:{port + 3}",
            **({"media": f"127.0.0.1:{port + 4}"} if layout.files and layout.ipconfs else {}),
        }

    idcs = [
        {
            "name": name,
            "place": _PLACES[name],
            "endpoints": endpoints(number + 1),
            "gateways": gateways,
            "ipconfs": layout.ipconfs,
        }
        for number, name in enumerate(layout.idcs)
    ]
    shards = [
        {
            "name": _SHARDS[name],
            "match": {
                "cidrs": [f"{n}.0.0.0/8" for n in range(1, 224) if layout.home_of(f"{n}.") == name]
            },
            "weights": {name: 1},
            "fallback": [other for other in layout.idcs if other != name],
        }
        for name in layout.idcs
    ]
    links = [{"between": pair, "delay_ms": delay} for pair, delay in DELAY_MS.items()]
    some: dict[str, Any] = {}
    if layout.witness:
        some["witness"] = {"name": layout.witness, "peer": endpoints(len(PLACES))["peer"]}
    if layout.files:
        some["media"] = {}
    if layout.tight:
        some |= {"safety": {"anti_flap_ms": ANTI_FLAP_MS}, "limits": LIMITS}
        some["messages"] = {"push_group_members_max": HUGE_ABOVE}
    return Region.model_validate(
        {
            "apiVersion": "imctl.dev/v1alpha1",
            "kind": "Region",
            "metadata": {"name": "simulated"},
            "spec": {
                "partitions": 4,
                "idcs": idcs,
                **some,
                "links": links,
                "geo": {"default": "europe", "shards": shards},
                "tracing": {"per_s": 0},  # the ids of spans are not the seed's
            },
        }
    )
