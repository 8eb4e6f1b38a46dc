"""What a change of each field takes on a deployment that runs.

Every field of the region file has its line here (a test compares them with the model). No field is
re-read by a process that runs, so none takes a reload.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from fnmatch import fnmatchcase
from typing import NamedTuple

from imcore.region.model import Region
from imctl.plan.diff import ABSENT, Difference


class Takes(StrEnum):
    NOTHING = "nothing"
    RESTART = "restart"
    IN_PLACE = "in place"  # the unit goes on, and keeps its clients but for what is warned of
    FIXED = "not changeable"


class Scope(StrEnum):
    """Whose restart."""

    OWN = "own"  # of the IDC that the field belongs to
    IDCS = "idcs"
    VOTERS = "voters"  # of all IDCs, and the witness


class Rule(NamedTuple):
    pattern: str  # of the dotted path
    takes: Takes
    scope: Scope | None
    reason: str


class Change(NamedTuple):
    difference: Difference
    takes: Takes
    units: tuple[str, ...]  # to be restarted, or changed in place
    reason: str
    warning: str = ""  # of one in place


def _nothing(pattern: str, reason: str) -> Rule:
    return Rule(pattern, Takes.NOTHING, None, reason)


def _restart(scope: Scope, pattern: str, reason: str) -> Rule:
    return Rule(pattern, Takes.RESTART, scope, reason)


def _fixed(pattern: str, reason: str) -> Rule:
    return Rule(pattern, Takes.FIXED, None, reason)


_ENGINES = "spec.idcs.*.engines"
_DATA_STAY = "data stays with the engine that wrote it"
_BACK_AND_FORTH = (
    "during the rollout, IDCs that disagree on a client's home would hand it back and forth"
)
_VOTERS = "it defines the voters; two different sets of voters could commit two different policies"

# The first that matches counts.
RULES: tuple[Rule, ...] = (
    _fixed("metadata.name", "the deployment, its keys and its certificates use this name"),
    _nothing("metadata.labels*", "no process reads it"),
    _fixed("spec.partitions", "the layout of every log and KV depends on it"),
    _fixed("spec.witness*", _VOTERS),
    _fixed("spec.links*", "a deploy does not change links; `imctl slow` does"),
    # ------------------------------------------------------------------------------- an IDC
    _nothing("spec.idcs.*.place.*", "it is only displayed"),
    _restart(Scope.OWN, "spec.idcs.*.endpoints.gateway", "read at startup"),
    _restart(Scope.OWN, "spec.idcs.*.endpoints.ipconf", "read at startup"),
    _restart(Scope.OWN, "spec.idcs.*.endpoints.metrics", "read at startup"),
    _restart(Scope.OWN, "spec.idcs.*.endpoints.admin", "read at startup"),
    _restart(Scope.IDCS, "spec.idcs.*.endpoints.media", "the ipconfs of all IDCs tell it"),
    _fixed(
        "spec.idcs.*.endpoints.peer",
        "the other IDCs dial it, so all would have to change at the same time",
    ),
    _restart(Scope.OWN, "spec.idcs.*.gateways", "read at startup"),
    _restart(Scope.OWN, "spec.idcs.*.ipconfs", "read at startup"),
    _restart(Scope.VOTERS, "spec.idcs.*.capacity.*", "every controller computes headroom from it"),
    _fixed(f"{_ENGINES}.kv.tikv.prefix", _DATA_STAY),
    _restart(Scope.OWN, f"{_ENGINES}.kv.tikv.?*", "read at startup"),
    _fixed(f"{_ENGINES}.kv*", "use `imctl migrate kv`"),
    _fixed(f"{_ENGINES}.log.kafka.topic_prefix", _DATA_STAY),
    _restart(Scope.IDCS, f"{_ENGINES}.log.kafka.brokers", "the other IDCs' mirrors read it too"),
    _restart(
        Scope.OWN,
        f"{_ENGINES}.log.kafka.?*",
        "read at startup; existing topics are not changed",
    ),
    _fixed(f"{_ENGINES}.log*", _DATA_STAY),
    _restart(Scope.OWN, f"{_ENGINES}.mirror*", "read at startup"),
    _fixed(f"{_ENGINES}.registry.etcd.prefix", _DATA_STAY),
    _restart(Scope.OWN, f"{_ENGINES}.registry.etcd.?*", "read at startup"),
    _fixed(f"{_ENGINES}.registry*", "a registry on another engine starts empty, and abstains"),
    _fixed(f"{_ENGINES}.blobs.s3.bucket", _DATA_STAY),
    _fixed(f"{_ENGINES}.blobs.s3.prefix", _DATA_STAY),
    _restart(Scope.OWN, f"{_ENGINES}.blobs.s3.?*", "read at startup"),
    _fixed(f"{_ENGINES}.blobs*", _DATA_STAY),
    _fixed("spec.idcs*", _VOTERS),
    # --------------------------------------------------------------------------------- geo
    _restart(Scope.IDCS, "spec.geo.shards.*.match.*", "read at startup"),
    _fixed("spec.geo.shards*", _BACK_AND_FORTH),
    _fixed("spec.geo.default", _BACK_AND_FORTH),
    _restart(Scope.IDCS, "spec.geo.trusted_proxies", "read at startup"),
    _restart(Scope.IDCS, "spec.geo.database", "read at startup"),
    # ---------------------------------------------------------------------------- behaviour
    _restart(Scope.VOTERS, "spec.safety.*", "every controller uses it"),
    _restart(Scope.IDCS, "spec.messages.*", "read at startup"),
    _restart(Scope.IDCS, "spec.limits.*", "read at startup"),
    _restart(Scope.IDCS, "spec.retention.*", "read at startup"),
    _restart(Scope.IDCS, "spec.tracing.*", "read at startup"),
    _restart(Scope.IDCS, "spec.client.*", "read at startup"),
    _restart(Scope.IDCS, "spec.devices.*", "read at startup"),
    _restart(Scope.IDCS, "spec.routing.*", "read at startup"),
    _restart(Scope.IDCS, "spec.webhooks*", "read at startup"),
    _restart(Scope.IDCS, "spec.media*", "read at startup"),
)


def changes(
    found: Sequence[Difference], region: Region, engines_here: bool = False
) -> list[Change]:
    """What each difference takes. ``region``: the one that runs. ``engines_here``: the target runs
    the engines itself, and does not exchange them under an IDC."""
    return [_judged(difference, region, engines_here) for difference in found]


def units_of(scope: Scope, difference: Difference, region: Region) -> tuple[str, ...]:
    if scope is Scope.OWN:
        return (difference.path[2],)
    idcs = tuple(idc.name for idc in region.spec.idcs)
    witness = region.spec.witness
    return (*idcs, witness.name) if scope is Scope.VOTERS and witness else idcs


def rule_of(dotted: str) -> Rule | None:
    return next((rule for rule in RULES if fnmatchcase(dotted, rule.pattern)), None)


def _judged(difference: Difference, region: Region, engines_here: bool) -> Change:
    path = difference.path
    rule = rule_of(".".join(path))
    if rule is None:
        return Change(difference, Takes.FIXED, (), "it is not known what a change of it needs")
    if engines_here and path[:2] == ("spec", "idcs") and "engines" in path[3:4]:
        return Change(
            difference,
            Takes.FIXED,
            (),
            "imctl runs this engine, and does not replace it under a running IDC",
        )
    dialled = path[3:4] == ("endpoints",) and path[4:] not in (("metrics",), ("admin",))
    if dialled and _host(difference.before) != _host(difference.after):
        return Change(difference, Takes.FIXED, (), "the IDC's certificate names the host")
    units = units_of(rule.scope, difference, region) if rule.scope else ()
    return Change(difference, rule.takes, units, rule.reason)


def _host(address: object) -> str:
    return "" if address is ABSENT else str(address).rpartition(":")[0]
