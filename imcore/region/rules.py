"""The rules between the fields of a region file. Pure: a Region in, problems out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from ipaddress import ip_network
from itertools import combinations

from imcore.region.model import Idc, Region, Shard
from imcore.region.problem import Loc, Problem, dotted

# Names of certificates that are not IDCs.
RESERVED = ("admin", "linkproxy")


def check(region: Region) -> list[Problem]:
    checks = (
        _names, _ports, _witness, _links, _shards, _claims, _networks, _safety, _messages, _engines,
    )  # fmt: skip
    return [problem for one in checks for problem in one(region)]


def _known(region: Region) -> list[str]:
    return [idc.name for idc in region.spec.idcs]


def _one_of(names: list[str]) -> str:
    return f"one of {', '.join(names)}"


def _names(region: Region) -> Iterator[Problem]:
    taken = {name: "imctl itself" for name in RESERVED}
    if region.spec.witness:
        taken[region.spec.witness.name] = "the witness"
        if region.spec.witness.name in RESERVED:
            loc: Loc = ("spec", "witness", "name")
            yield Problem(loc, "a name of its own", f'"{region.spec.witness.name}", which is taken')
    for index, idc in enumerate(region.spec.idcs):
        if idc.name in taken:
            got = f'"{idc.name}", which is the name of {taken[idc.name]}'
            yield Problem(("spec", "idcs", index, "name"), "a name of its own", got, "rename it")
        taken.setdefault(idc.name, f"spec.idcs[{index}]")


def listeners(region: Region) -> Iterator[tuple[Loc, str, int]]:
    """(field, host, port) of everything that listens, each gateway of an IDC by itself."""
    for index, idc in enumerate(region.spec.idcs):
        base: Loc = ("spec", "idcs", index, "endpoints")
        host, port = split(idc.endpoints.gateway)
        for offset in range(idc.gateways):
            yield (*base, "gateway"), host, port + offset
        yield (*base, "ipconf"), *split(idc.endpoints.ipconf)
        yield (*base, "peer"), *split(idc.endpoints.peer)
    if region.spec.witness:
        yield ("spec", "witness", "peer"), *split(region.spec.witness.peer)


def split(host_port: str) -> tuple[str, int]:
    host, _, port = host_port.rpartition(":")
    return host, int(port)


def _ports(region: Region) -> Iterator[Problem]:
    taken: dict[tuple[str, int], Loc] = {}
    for loc, host, port in listeners(region):
        if not 1 <= port <= 65535:
            yield Problem(loc, "a port from 1 to 65535", str(port))
        key = ("127.0.0.1" if host == "localhost" else host, port)
        if key in taken:
            got = f"{port}, which {dotted(taken[key])} has too"
            yield Problem(loc, "a port of its own", got, "change one")
        taken.setdefault(key, loc)


def _witness(region: Region) -> Iterator[Problem]:
    if len(region.spec.idcs) == 2 and region.spec.witness is None:
        yield Problem(
            ("spec", "witness"),
            "a witness, because two IDCs alone have no majority when one is lost",
            "none",
            "add `witness: {peer: HOST:PORT}` under spec",
        )


def _links(region: Region) -> Iterator[Problem]:
    known = _known(region)
    ends = [*known, region.spec.witness.name] if region.spec.witness else known
    seen: dict[frozenset[str], int] = {}
    for index, link in enumerate(region.spec.links):
        loc: Loc = ("spec", "links", index, "between")
        for position, name in enumerate(link.between):
            if name not in ends:
                yield Problem((*loc, position), _one_of(ends), f'"{name}"')
        pair = frozenset(link.between)
        if len(pair) == 1:
            yield Problem(loc, "two different IDCs", f'"{link.between[0]}" twice')
        elif pair in seen:
            got = f"a second link (the first is spec.links[{seen[pair]}])"
            yield Problem(loc, "one link for each pair of IDCs", got, "remove one")
        seen.setdefault(pair, index)
    for low, high in combinations(known, 2):
        if low != high and frozenset((low, high)) not in seen:
            do = f"add `- {{between: [{low}, {high}], delay_ms: …}}`"
            yield Problem(("spec", "links"), f"a link between {low} and {high}", "none", do)


def _shards(region: Region) -> Iterator[Problem]:
    known, geo = _known(region), region.spec.geo
    names = [shard.name for shard in geo.shards]
    if geo.default not in names:
        expected = f"the name of a shard ({', '.join(names) or 'there is none'})"
        yield Problem(("spec", "geo", "default"), expected, f'"{geo.default}"')
    for index, shard in enumerate(geo.shards):
        loc: Loc = ("spec", "geo", "shards", index)
        if shard.name in names[:index]:
            got = f'"{shard.name}" again'
            yield Problem((*loc, "name"), "a name of its own", got, "rename it")
        yield from _shard(shard, loc, known)


def _shard(shard: Shard, loc: Loc, known: list[str]) -> Iterator[Problem]:
    for name, weight in shard.weights.items():
        if name not in known:
            yield Problem((*loc, "weights", name), _one_of(known), f'"{name}"')
        if weight < 0:
            yield Problem((*loc, "weights", name), "a weight of at least 0", f"{weight:g}")
    if not any(weight > 0 for weight in shard.weights.values()):
        do = "give one IDC a weight, such as 1"
        yield Problem((*loc, "weights"), "an IDC with a weight above 0", "none", do)
    for position, name in enumerate(shard.fallback):
        if name not in known:
            yield Problem((*loc, "fallback", position), _one_of(known), f'"{name}"')
        elif name in shard.fallback[:position]:
            yield Problem((*loc, "fallback", position), "each IDC once", f'"{name}" again')


def _claims(region: Region) -> Iterator[Problem]:
    """A country, ASN or network belongs to one shard. Networks inside others are fine: the longest
    prefix wins."""
    taken: dict[tuple[str, object], str] = {}
    for index, shard in enumerate(region.spec.geo.shards):
        for kind, values in (
            ("countries", shard.match.countries),
            ("asns", shard.match.asns),
            ("cidrs", [ip_network(text) for text in shard.match.cidrs]),
        ):
            for position, value in enumerate(values):
                loc: Loc = ("spec", "geo", "shards", index, "match", kind, position)
                owner = taken.setdefault((kind, value), f"{shard.name}/{position}")
                if owner != f"{shard.name}/{position}":
                    other = owner.rpartition("/")[0]
                    got = f"{value}, which shard {other} has already"
                    yield Problem(loc, "what no other entry claims", got, "remove one")


def _networks(region: Region) -> Iterator[Problem]:
    for position, text in enumerate(region.spec.geo.trusted_proxies):
        try:
            ip_network(text)
        except ValueError as error:
            loc: Loc = ("spec", "geo", "trusted_proxies", position)
            yield Problem(loc, "a network such as 10.0.0.0/8", f'"{text}" ({error})')


def _safety(region: Region) -> Iterator[Problem]:
    safety, count = region.spec.safety, len(region.spec.idcs)
    if safety.active_idcs_min >= max(count, 2):
        loc: Loc = ("spec", "safety", "active_idcs_min")
        expected = f"less than the number of IDCs ({count}), or no IDC could ever be taken out"
        yield Problem(loc, expected, str(safety.active_idcs_min))
    for index, window in enumerate(safety.freeze):
        times = []
        for field, text in (("start", window.start), ("end", window.end)):
            at: Loc = ("spec", "safety", "freeze", index, field)
            time = _time(text)
            if time is None:
                yield Problem(at, "a time with its zone, such as 2026-12-24T00:00:00Z", f'"{text}"')
            else:
                times.append(time)
        if len(times) == 2 and times[0] >= times[1]:
            at = ("spec", "safety", "freeze", index, "end")
            yield Problem(at, "a time after the start", f'"{window.end}"')


def _time(text: str) -> datetime | None:
    try:
        time = datetime.fromisoformat(text)
    except ValueError:
        return None
    return time if time.tzinfo else None


def _messages(region: Region) -> Iterator[Problem]:
    messages, others = region.spec.messages, len(region.spec.idcs) - 1
    if messages.ack == "replicated" and messages.replicas > others:
        loc: Loc = ("spec", "messages", "replicas")
        yield Problem(loc, f"at most {others}, the number of other IDCs", str(messages.replicas))


def registry_prefix(region: Region, idc: Idc) -> str:
    """Below which keys this IDC's registry lies in its etcd."""
    etcd = idc.engines.registry.etcd
    prefix = (etcd.prefix if etcd else None) or f"imctl/{region.metadata.name}/{idc.name}"
    return prefix.rstrip("/") + "/"


def _engines(region: Region) -> Iterator[Problem]:
    taken: dict[tuple[str, str], str] = {}
    for index, idc in enumerate(region.spec.idcs):
        etcd = idc.engines.registry.etcd
        if etcd is None:
            continue
        loc: Loc = ("spec", "idcs", index, "engines", "registry", "etcd")
        for one, other in (
            ("cert_file", "key_file"),
            ("key_file", "cert_file"),
            ("username", "password_file"),
            ("password_file", "username"),
            ("cert_file", "ca_file"),
            ("username", "ca_file"),  # a password would be readable on the way
        ):
            if getattr(etcd, one) is not None and getattr(etcd, other) is None:
                do = f"add `{other}:`"
                yield Problem((*loc, one), f"`{other}` beside `{one}`", "none", do)
        prefix = registry_prefix(region, idc)
        for position, endpoint in enumerate(etcd.endpoints):
            owner = taken.setdefault((endpoint, prefix), idc.name)
            if owner != idc.name:
                got = f"{endpoint} with the prefix {prefix}, which {owner} has too"
                do = "give one of them another `prefix:`"
                yield Problem((*loc, "endpoints", position), "a registry of its own", got, do)


def gateway_ports(idc: Idc) -> list[tuple[str, int]]:
    """host, port of each gateway: gateway n listens n ports above the first."""
    host, port = split(idc.endpoints.gateway)
    return [(host, port + offset) for offset in range(idc.gateways)]
