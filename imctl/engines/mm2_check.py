"""What a MirrorMaker's settings must keep for the promises to hold, whoever wrote them. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping

from imctl.engines.mm2_config import POLICY, Flows

REFRESH_S_MAX = 30
TRANSACTION_MS_MAX = 30_000
_Settings = Mapping[str, str]


def problems(found: _Settings, flows: Flows) -> list[str]:
    """What would break a promise, a sentence each that names the setting; empty: nothing."""
    checks = (_flows, _topics, _policy, _once, _untouched, _pace, _secrets)
    return [problem for check in checks for problem in check(found, flows)]


def _flows(found: _Settings, flows: Flows) -> Iterator[str]:
    target = flows.target.idc
    known = [name.strip() for name in found.get("clusters", "").split(",")]
    for cluster in flows.clusters:
        if cluster.idc not in known:
            yield f"clusters: expected {cluster.idc} in it"
        if not found.get(f"{cluster.idc}.bootstrap.servers"):
            yield f"{cluster.idc}.bootstrap.servers: expected HOST:PORT of its brokers, got nothing"
    for source in flows.sources:
        if found.get(f"{source.idc}->{target}.enabled") != "true":
            yield f"{source.idc}->{target}.enabled: expected true, or its log is never copied"
    for key, value in found.items():
        flow = re.fullmatch(r"(.+)->(.+)\.enabled", key)
        if flow and value == "true" and flow[2] != target:
            yield f"{key}: expected only flows into {target}: each IDC has a MirrorMaker of its own"


def _topics(found: _Settings, flows: Flows) -> Iterator[str]:
    own = [f"{flows.prefix}.log.{number}" for number in (1, 9, 27)]
    others = [
        f"{flows.prefix}.meta",
        f"{flows.prefix}.log.1.old",
        *(f"{flows.prefix}.relay.{cluster.idc}.1" for cluster in flows.clusters),
        *(f"{cluster.idc}.{flows.prefix}.log.1" for cluster in flows.clusters),
    ]
    for key in {"topics", *_keys(found, "topics")}:
        taken = _matching(found.get(key, ".*"))
        if taken is None:
            yield f"{key}: expected regular expressions, separated by commas"
            continue
        if missed := [topic for topic in own if not taken(topic)]:
            yield f"{key}: expected {flows.topics}, which takes every log; it misses {missed[0]}"
        if wrong := [topic for topic in others if taken(topic)]:
            yield f"{key}: expected {flows.topics}, which takes logs only; it takes {wrong[0]}"
    for key in _keys(found, "topics.exclude"):
        left_out = _matching(found[key])
        if left_out is None or any(map(left_out, own)):
            yield f"{key}: expected regular expressions that leave no {flows.prefix}.log.N out"


def _matching(patterns: str) -> Callable[[str], bool] | None:
    """None: they cannot be read."""
    try:
        compiled = re.compile("|".join(f"(?:{part.strip()})" for part in patterns.split(",")))
    except re.error:
        return None
    return lambda topic: compiled.fullmatch(topic) is not None


def _policy(found: _Settings, flows: Flows) -> Iterator[str]:
    for key in _keys(found, "replication.policy.class"):
        if found[key] != POLICY:
            yield (
                f"{key}: expected {POLICY}, got {found[key]}: where copies keep their names, "
                "IDCs copy each other's copies without end"
            )
    for key in _keys(found, "replication.policy.separator"):
        if found[key] != ".":
            yield f'{key}: expected ".", by which copies are found'


def _once(found: _Settings, flows: Flows) -> Iterator[str]:
    key = f"{flows.target.idc}.exactly.once.source.support"
    if found.get(key) != "enabled":
        yield f"{key}: expected enabled, or a killed MirrorMaker copies records twice"
    for source in flows.sources:
        key = f"{source.idc}.consumer.isolation.level"
        if found.get(key) != "read_committed":
            yield f"{key}: expected read_committed, or what was rolled back is copied"
        key = f"{source.idc}.consumer.auto.offset.reset"
        if found.get(key, "earliest") != "earliest":
            yield f"{key}: expected earliest, or a new log's first records are left out"


def _untouched(found: _Settings, flows: Flows) -> Iterator[str]:
    """What MirrorMaker must leave alone."""
    for setting, default, why in (
        ("sync.topic.configs.enabled", "true", "the source's retention would cut the copies"),
        ("sync.topic.acls.enabled", "true", "rights in a cluster are its own IDC's"),
        ("sync.group.offsets.enabled", "false", "positions in copies are their readers' own"),
    ):
        if found.get(setting, default) != "false":
            yield f"{setting}: expected false: {why}"
        for key in _keys(found, setting):
            if key != setting and found[key] != "false":
                yield f"{key}: expected false: {why}"
    syncs = found.get("emit.offset-syncs.enabled", "true") != "false"
    if syncs and found.get("offset-syncs.topic.location", "source") != "target":
        yield "offset-syncs.topic.location: expected target: sources are only read from"


def _pace(found: _Settings, flows: Flows) -> Iterator[str]:
    if found.get("refresh.topics.enabled", "true") != "true":
        yield "refresh.topics.enabled: expected true, or a new incarnation's log is never copied"
    key = "refresh.topics.interval.seconds"
    yield from _at_most(found, key, 600, REFRESH_S_MAX, "a new incarnation's log waits so long")
    key = f"{flows.target.idc}.producer.transaction.timeout.ms"
    why = "readers wait so long for a killed MirrorMaker"
    yield from _at_most(found, key, 60_000, TRANSACTION_MS_MAX, why)


def _at_most(found: _Settings, key: str, default: int, most: int, why: str) -> Iterator[str]:
    text = found.get(key, str(default))
    if not text.isdecimal() or int(text) > most:
        yield f"{key}: expected at most {most}, got {text}: {why}"


def _secrets(found: _Settings, flows: Flows) -> Iterator[str]:
    """The message never repeats one."""
    for key, value in found.items():
        password = re.search(r'password\s*=\s*"?([^"\s;]*)', value) if "jaas" in key else None
        inline = password[1] if password else value if _secret(key) else ""
        if inline and not inline.startswith("${"):
            yield f"{key}: expected ${{file:FILE:KEY}} or ${{directory:DIR:FILE}}, got the secret"


def _secret(key: str) -> bool:
    return key.endswith((".password", "ssl.keystore.key"))


def _keys(found: _Settings, setting: str) -> list[str]:
    """The setting for all flows, and for one of them."""
    return sorted(key for key in found if key == setting or key.endswith(f".{setting}"))
