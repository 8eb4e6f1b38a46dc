"""The region that is simulated: three IDCs on three continents, clients by their first octet."""

from __future__ import annotations

from imcore.region.model import Region

IDCS = ("fra", "iad", "sin")
COUNTRIES = {"fra": ["DE"], "iad": ["US"], "sin": ["SG"]}
DELAY_MS = {("fra", "iad"): 45, ("fra", "sin"): 80, ("iad", "sin"): 110}
ACCESS_MS = 8  # from a client to the IDC that is next to it
_SHARDS = {"fra": "europe", "iad": "americas", "sin": "asia"}
_PLACES = {
    "fra": {"city": "Frankfurt", "country": "DE", "latitude": 50.11, "longitude": 8.68},
    "iad": {"city": "Ashburn", "country": "US", "latitude": 39.04, "longitude": -77.49},
    "sin": {"city": "Singapore", "country": "SG", "latitude": 1.35, "longitude": 103.82},
}


def home_of(address: str) -> str:
    """The IDC that an IPv4 address is at home in."""
    return IDCS[int(address.partition(".")[0]) % len(IDCS)]


def country_of(address: str) -> str:
    return COUNTRIES[home_of(address)][0]


def region(gateways: int = 2) -> Region:
    def endpoints(number: int) -> dict[str, str]:
        port = 17_000 + 100 * number
        return {
            "gateway": f"127.0.0.1:{port + 10}",
            "ipconf": f"127.0.0.1:{port + 1}",
            "peer": f"127.0.0.1:{port + 2}",
        }

    idcs = [
        {
            "name": name,
            "place": _PLACES[name],
            "endpoints": endpoints(number + 1),
            "gateways": gateways,
        }
        for number, name in enumerate(IDCS)
    ]
    shards = [
        {
            "name": _SHARDS[name],
            "match": {"cidrs": [f"{n}.0.0.0/8" for n in range(1, 224) if home_of(f"{n}.") == name]},
            "weights": {name: 1},
            "fallback": [other for other in IDCS if other != name],
        }
        for name in IDCS
    ]
    links = [{"between": pair, "delay_ms": delay} for pair, delay in DELAY_MS.items()]
    return Region.model_validate(
        {
            "apiVersion": "imctl.dev/v1alpha1",
            "kind": "Region",
            "metadata": {"name": "simulated"},
            "spec": {
                "partitions": 4,
                "idcs": idcs,
                "links": links,
                "geo": {"default": "europe", "shards": shards},
                "tracing": {"per_s": 0},  # the ids of spans are not the seed's
            },
        }
    )
