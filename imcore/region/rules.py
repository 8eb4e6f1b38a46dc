"""The rules between the fields of a region file. Pure: a Region in, problems out."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime
from ipaddress import ip_network
from itertools import combinations
from typing import NamedTuple

from imcore import roles
from imcore.region.model import S3, Etcd, Idc, Kafka, MirrorMaker2, Region, Shard
from imcore.region.problem import Loc, Problem, dotted

# Names of certificates that are not IDCs, and of `imctl`'s own audit log, whose anchor an operator
# may write.
RESERVED = (*roles.NAMES, "linkproxy", "ca", "imctl")
S3_BYTES_MAX = 5 << 30  # of what is sent as one object


def check(region: Region) -> list[Problem]:
    checks = (
        _names, _ports, _witness, _links, _shards, _claims, _networks, _safety, _messages, _media,
        _webhooks, _engines,
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
        for address in ipconf_addresses(idc):
            yield (*base, "ipconf"), *split(address)
        yield (*base, "peer"), *split(idc.endpoints.peer)
        if idc.endpoints.metrics is not None:
            yield (*base, "metrics"), *split(idc.endpoints.metrics)
        if idc.endpoints.admin is not None:
            yield (*base, "admin"), *split(idc.endpoints.admin)
        if idc.endpoints.media is not None:
            yield (*base, "media"), *split(idc.endpoints.media)
    if region.spec.witness:
        yield ("spec", "witness", "peer"), *split(region.spec.witness.peer)
        if region.spec.witness.metrics is not None:
            yield ("spec", "witness", "metrics"), *split(region.spec.witness.metrics)


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


def _webhooks(region: Region) -> Iterator[Problem]:
    """By its name an IDC notes how far each has come."""
    names = [hook.name for hook in region.spec.webhooks]
    for index, name in enumerate(names):
        if name in names[:index]:
            loc: Loc = ("spec", "webhooks", index, "name")
            yield Problem(loc, "a name of its own", f'"{name}" again', "rename it")


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


def voters_of(region: Region) -> list[str]:
    """Who has a registry, and so a vote: every IDC, and the witness."""
    witness = [region.spec.witness.name] if region.spec.witness else []
    return [*(idc.name for idc in region.spec.idcs), *witness]


def ipconf_addresses(idc: Idc) -> list[str]:
    """HOST:PORT of each ipconf of this IDC; any of them will do."""
    host, port = split(idc.endpoints.ipconf)
    return [f"{host}:{port + number}" for number in range(max(1, idc.ipconfs))]


def _media(region: Region) -> Iterator[Problem]:
    media = region.spec.media
    for index, idc in enumerate(region.spec.idcs):
        if media is not None and idc.ipconfs and idc.endpoints.media is None:
            yield Problem(
                ("spec", "idcs", index, "endpoints", "media"),
                "HOST:PORT, because files stay with the core when ipconf is a process of its own",
                "none",
                "add it, or leave `ipconfs` out",
            )
    if media is not None and media.user_bytes_max < media.bytes_max:
        loc: Loc = ("spec", "media", "user_bytes_max")
        expected = f"at least `bytes_max` ({media.bytes_max}), or nobody could upload such a file"
        yield Problem(loc, expected, str(media.user_bytes_max))


def _messages(region: Region) -> Iterator[Problem]:
    messages, others = region.spec.messages, len(region.spec.idcs) - 1
    if messages.ack == "replicated" and messages.replicas > others:
        loc: Loc = ("spec", "messages", "replicas")
        yield Problem(loc, f"at most {others}, the number of other IDCs", str(messages.replicas))


def registry_prefix(region: Region, idc: Idc) -> str:
    """Below which keys this IDC's registry lies in its etcd."""
    etcd = idc.engines.registry.etcd
    return _prefix(etcd.prefix if etcd else None, region, idc)


def kv_prefix(region: Region, idc: Idc) -> str:
    """Below which keys this IDC's KV lies in its TiKV."""
    tikv = idc.engines.kv.tikv
    return _prefix(tikv.prefix if tikv else None, region, idc)


def blobs_prefix(region: Region, idc: Idc) -> str:
    """Below which keys this IDC's files lie in its bucket."""
    s3 = idc.engines.blobs.s3
    return _prefix(s3.prefix if s3 else None, region, idc)


def _prefix(wanted: str | None, region: Region, idc: Idc) -> str:
    return (wanted or f"imctl/{region.metadata.name}/{idc.name}").rstrip("/") + "/"


def _engines(region: Region) -> Iterator[Problem]:
    for index, idc in enumerate(region.spec.idcs):
        loc: Loc = ("spec", "idcs", index, "engines")
        for field, address in _dialled(idc):
            port = address.rpartition(":")[2]
            if not 1 <= int(port) <= 65535:
                yield Problem((*loc, *field), "a port from 1 to 65535", port)
        if idc.engines.registry.etcd:
            yield from _credentials(idc.engines.registry.etcd, (*loc, "registry", "etcd"))
        if kafka := idc.engines.log.kafka:
            yield from _credentials(kafka, (*loc, "log", "kafka"))
            if kafka.min_insync_replicas > kafka.replication_factor:
                at: Loc = (*loc, "log", "kafka", "min_insync_replicas")
                expected = f"at most {kafka.replication_factor}, the replication factor"
                yield Problem(at, expected, str(kafka.min_insync_replicas))
            if kafka.durability == "replicated" and kafka.min_insync_replicas < 2:
                at = (*loc, "log", "kafka", "durability")
                got = "`replicated` with `min_insync_replicas: 1`, in one broker's memory"
                expected = "acked records that survive a crash of one machine"
                yield Problem(at, expected, got, "say `durability: flush`")
        if idc.engines.blobs.s3:
            yield from _bucket(region, idc.engines.blobs.s3, (*loc, "blobs", "s3"))
        if idc.engines.mirror.mirrormaker2:
            yield from _mirrormaker(region, idc, (*loc, "mirror", "mirrormaker2"))
    yield from _shared(region)


def _dialled(idc: Idc) -> Iterator[tuple[Loc, str]]:
    """HOST:PORT of each engine, and the field below `engines` that names it."""
    engines = idc.engines
    lists: list[tuple[Loc, list[str]]] = []
    if engines.registry.etcd:
        lists.append((("registry", "etcd", "endpoints"), engines.registry.etcd.endpoints))
    if engines.kv.tikv:
        lists.append((("kv", "tikv", "pd"), engines.kv.tikv.pd))
    if engines.log.kafka:
        lists.append((("log", "kafka", "brokers"), engines.log.kafka.brokers))
    if mirror := engines.mirror.mirrormaker2:
        at: Loc = ("mirror", "mirrormaker2", "remote_brokers")
        lists += [((*at, name), brokers) for name, brokers in mirror.remote_brokers.items()]
    for field, addresses in lists:
        for position, address in enumerate(addresses):
            yield (*field, position), address


def _credentials(engine: Etcd | Kafka, loc: Loc) -> Iterator[Problem]:
    for one, other in (
        ("cert_file", "key_file"),
        ("key_file", "cert_file"),
        ("username", "password_file"),
        ("password_file", "username"),
        ("cert_file", "ca_file"),
        ("username", "ca_file"),  # a password would be readable on the way
    ):
        if getattr(engine, one) is not None and getattr(engine, other) is None:
            yield Problem((*loc, one), f"`{other}` beside `{one}`", "none", f"add `{other}:`")


def _bucket(region: Region, s3: S3, loc: Loc) -> Iterator[Problem]:
    if s3.ca_file is not None and not s3.endpoint.startswith("https://"):
        yield Problem((*loc, "ca_file"), "an `endpoint: https://...` beside it", s3.endpoint)
    media = region.spec.media
    if media is not None and media.bytes_max > S3_BYTES_MAX:
        at: Loc = ("spec", "media", "bytes_max")
        expected = f"at most {S3_BYTES_MAX}, which S3 takes at once, since an IDC has files there"
        yield Problem(at, expected, str(media.bytes_max))


def _mirrormaker(region: Region, idc: Idc, loc: Loc) -> Iterator[Problem]:
    without = [one.name for one in region.spec.idcs if one.engines.log.kafka is None]
    if without:
        got = f"another log at {', '.join(without)}"
        yield Problem(loc, "a log on Kafka in every IDC", got, "say `mirror: embedded`")
    logs = [(one.name, one.engines.log.kafka) for one in region.spec.idcs]
    prefixes = {kafka.topic_prefix: name for name, kafka in logs if kafka}
    if len(prefixes) > 1:
        got = " and ".join(f'"{prefix}" at {name}' for prefix, name in prefixes.items())
        yield Problem(loc, "one topic_prefix in all IDCs, by which copies are found", got)
    taken = {part for prefix in prefixes for part in f"{prefix}.log".split(".")}
    if idc.name in taken:  # MirrorMaker takes the word for the cluster that a topic came from
        got = f'"{idc.name}", a part of the topics\' names'
        yield Problem(loc, "an IDC whose name is no part of `topic_prefix`.log", got)
    others = [one.name for one in region.spec.idcs if one.name != idc.name]
    for name, brokers in (idc.engines.mirror.mirrormaker2 or MirrorMaker2()).remote_brokers.items():
        at: Loc = (*loc, "remote_brokers", name)
        if name not in others:
            yield Problem(at, _one_of(others) if others else "no other IDC", f'"{name}"')
        if not brokers:
            yield Problem(at, "HOST:PORT of at least one broker", "an empty list")


def _shared(region: Region) -> Iterator[Problem]:
    """No two IDCs on the same keys or topics: one would take the other's for its own."""
    taken: list[tuple[_Place, str]] = []
    for index, idc in enumerate(region.spec.idcs):
        for place in _places(region, idc):
            for other, owner in taken:
                if place.meets(other) and owner != idc.name:
                    loc: Loc = ("spec", "idcs", index, "engines", *place.field)
                    same = place.prefix == other.prefix
                    words = f"which {owner} has too" if same else f"and {owner} has {other.prefix}"
                    got = f"{place.address} with the prefix {place.prefix}, {words}"
                    yield Problem(loc, f"a {place.what} of its own", got, place.do)
            taken.append((place, idc.name))


class _Place(NamedTuple):
    """A key range (or the topics) at one address of an engine."""

    field: Loc
    what: str
    address: str
    prefix: str
    do: str = "give one of them another `prefix:`"

    def meets(self, other: _Place) -> bool:
        """Keys below "a/" hold those below "a/b/"."""
        near = self.prefix.startswith(other.prefix) or other.prefix.startswith(self.prefix)
        return near and (self.what, self.address) == (other.what, other.address)


def _places(region: Region, idc: Idc) -> Iterator[_Place]:
    engines = idc.engines
    if etcd := engines.registry.etcd:
        prefix = registry_prefix(region, idc)
        for position, address in enumerate(etcd.endpoints):
            field: Loc = ("registry", "etcd", "endpoints", position)
            yield _Place(field, "registry", address, prefix)
    if tikv := engines.kv.tikv:
        prefix = kv_prefix(region, idc)
        for position, address in enumerate(tikv.pd):
            yield _Place(("kv", "tikv", "pd", position), "KV", address, prefix)
    if s3 := engines.blobs.s3:
        prefix, at = blobs_prefix(region, idc), f"{s3.endpoint}/{s3.bucket}"
        yield _Place(("blobs", "s3", "bucket"), "place for files", at, prefix)
    if kafka := engines.log.kafka:
        do = "give each IDC a Kafka cluster"
        for position, address in enumerate(kafka.brokers):
            field = ("log", "kafka", "brokers", position)
            yield _Place(field, "log", address, kafka.topic_prefix + ".", do)


def gateway_ports(idc: Idc) -> list[tuple[str, int]]:
    """host, port of each gateway: gateway n listens n ports above the first."""
    host, port = split(idc.endpoints.gateway)
    return [(host, port + offset) for offset in range(idc.gateways)]
