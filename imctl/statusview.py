"""The status documents of all IDCs as one document, and that as tables. Pure."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from imcore.errors import ImError
from imcore.region.model import Region
from imctl.objectsview import table_of
from imctl.target.base import Unit, idc_of

COLOURS = {
    "active": "green",
    "cordoned": "yellow",
    "draining": "yellow",
    "drained": "yellow",
    "recovering": "cyan",
    "failed": "red",
    "retired": "dim",
}

PARTITIONS_SHOWN = 3  # of a MirrorMaker's flow
COLUMNS = ("WEIGHT", "GATEWAYS", "SESSIONS", "KV LAG", "LOG LAG", "EPOCH", "HEADROOM", "AGE")


def document_of(
    region: Region,
    units: Iterable[Unit],
    found: Mapping[str, dict[str, Any] | ImError],
    links: dict[str, Any] | ImError | None,
    ages: Mapping[str, float] | None = None,
) -> dict[str, Any]:
    """One plain document: what -o json prints. ``ages``: how long ago, in seconds, each IDC
    answered what is shown."""
    processes = {unit.name: {"state": unit.state, "pid": unit.pid} for unit in units}
    answers = {
        name: {"error": str(answer)} if isinstance(answer, ImError) else answer
        for name, answer in found.items()
    }
    return {
        "region": region.metadata.name,
        "policy": newest_policy(answers.values()),
        "ages": {name: round(age, 1) for name, age in (ages or {}).items()},
        "capacity": {
            idc.name: {
                "sessions": idc.capacity.sessions,
                "messages_per_s": idc.capacity.messages_per_s,
            }
            for idc in region.spec.idcs
        },
        "places": {idc.name: idc.place.city for idc in region.spec.idcs},
        "processes": processes,
        "idcs": {idc.name: answers.get(idc.name, {}) for idc in region.spec.idcs},
        "witness": answers.get(region.spec.witness.name) if region.spec.witness else None,
        "witness_name": region.spec.witness.name if region.spec.witness else None,
        "links": links.get("links", []) if isinstance(links, dict) else [],
    }


def newest_policy(answers: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """The one with the highest epoch: others have not heard of it yet."""
    policies = [answer["policy"] for answer in answers if answer.get("policy")]
    return max(policies, key=lambda policy: int(policy.get("epoch", 0)), default={})


def policies_said(answers: Mapping[str, Mapping[str, Any]]) -> dict[str, tuple[int, str]]:
    """Of each IDC that knows a policy: its epoch, and its content in short."""
    said = {}
    for idc, answer in answers.items():
        policy = answer.get("policy") or {}
        if epoch := int(policy.get("epoch") or 0):
            content = {"idcs": policy.get("idcs"), "operation": policy.get("operation")}
            text = json.dumps(content, sort_keys=True)
            said[idc] = epoch, hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
    return said


def render(document: Mapping[str, Any]) -> RenderableType:
    policy = document["policy"]
    head = f"{document['region']}  policy epoch {policy.get('epoch', 'unknown')}"
    if policy.get("stale"):
        head += "  STALE: no majority of registries answers"
    parts: list[RenderableType] = [Text(head, style="bold"), idc_table(document)]
    if rates := _rates(document):
        parts.append(Text(f"\nmessages/s: {rates}"))
    if policy.get("operation"):
        parts.append(Text(f"\n{_move(policy)}", style="cyan"))
    parts += [Text(said, style="yellow") for said in remarks(document)]
    if any(map(_on_engines, document["idcs"].values())):
        parts += [
            Text("\nengines (MirrorMaker 2: records behind, seconds since its last heartbeat)")
        ]
        parts += [_engines(document)]
    if len(document["idcs"]) > 1:
        parts += [Text("\nreplication lag (ms; records behind)"), _lag(document)]
    if said := certificates(document):
        parts.append(Text(f"\n{said}"))
    faulty = [link for link in document["links"] if _is_faulty(link)]
    if faulty:
        parts += [Text("\nlinks with a fault"), _links(faulty)]
    if objects := document.get("objects"):
        parts += [Text("\nobjects on Kubernetes (of moves and drills the last)"), table_of(objects)]
    for name, sentence in alarms(document):
        parts.append(Text(f"! {name}: {sentence}", style="red"))
    return Group(*parts)


def state_of(document: Mapping[str, Any], name: str) -> str:
    """The policy's state of an IDC, whether it answers or not."""
    states = document["policy"].get("idcs", {})
    return str(states.get(name, {}).get("state", "unknown"))


def process_of(document: Mapping[str, Any], name: str) -> str:
    state = str(document["processes"].get(name, {}).get("state", "not started"))
    witness = document["witness"] if name == document["witness_name"] else None
    answer = document["idcs"].get(name, witness) or {}
    if state == "elsewhere":
        state = "running"  # as far as its answer tells
    silent = state == "running" and "error" in answer
    return "unreachable" if silent else state


def idc_table(document: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), header_style="bold")
    for column in ("IDC", "STATE"):
        table.add_column(column, no_wrap=True, overflow="fold")
    for column in COLUMNS:
        table.add_column(column, justify="right", no_wrap=True, overflow="fold")
    for name, idc in document["idcs"].items():
        state = state_of(document, name)
        shown = Text(state, style=COLOURS.get(state, ""))
        table.add_row(name, shown, *_figures(document, name, idc))
    if document["witness"] is not None:
        table.add_row(document["witness_name"], "votes")
    return table


def _figures(document: Mapping[str, Any], name: str, idc: Mapping[str, Any]) -> tuple[str, ...]:
    """What an IDC that does not answer said last stands there with its age."""
    weight = _weight(document, name)
    age = document["ages"].get(name)
    shown = idc.get("last") or {} if "error" in idc else idc
    if not shown:
        return ("-" if weight is None else f"{weight} %", *("-" * (len(COLUMNS) - 1)))
    states = document["policy"].get("idcs", {})
    lags = [
        lag
        for origin, lag in (shown.get("lag") or {}).items()
        if states.get(origin.rpartition(".")[0], {}).get("state") not in ("failed", "retired")
    ]
    ms = max((float(lag.get("ms") or 0) for lag in lags), default=0)
    records = max((int(lag.get("records") or 0) for lag in lags), default=0)
    room = headroom(shown, document["capacity"][name])
    return (
        "-" if weight is None else f"{weight} %",
        str(len(shown.get("gateways", []))),
        str(shown.get("sessions", 0)),
        f"{ms:.0f} ms",
        str(records),
        str((shown.get("policy") or {}).get("epoch", "-")),
        f"{room:.0%}".replace("%", " %"),
        "-" if age is None else f"{age:.1f} s",
    )


def _weight(document: Mapping[str, Any], name: str) -> int | None:
    """Per cent of its clients that the policy gives it; None: nobody knows the policy."""
    row = document["policy"].get("idcs", {}).get(name)
    if row is None:
        return None
    return int(row.get("ramp", 100)) if row.get("state") == "active" else 0


def headroom(idc: Mapping[str, Any], capacity: Mapping[str, Any]) -> float:
    """The free share of what it can carry, of sessions or messages, whichever is less."""
    sessions = float(idc.get("sessions", 0)) / float(capacity["sessions"])
    rate = float(idc.get("rates", {}).get("accepted_per_s", 0)) / float(capacity["messages_per_s"])
    return max(0.0, 1.0 - max(sessions, rate))


def remarks(document: Mapping[str, Any]) -> list[str]:
    """What is worth a line only if it is not as usual: processes that do not run, an incarnation
    that is not the first, a clock that is being clamped."""
    found = []
    for name, idc in document["idcs"].items():
        said = []
        if (process := process_of(document, name)) != "running":
            said.append(process)
        origin = str((idc.get("last") or idc).get("origin", ""))
        if origin and not origin.endswith(".1"):
            said.append(f"serves as {origin}")
        moves = idc.get("moves", {})
        if stuck := moves.get("stuck"):
            where = ", ".join(f"{gateway}: {count}" for gateway, count in sorted(stuck.items()))
            said.append(
                f"{sum(stuck.values())} sessions asked to move more than "
                f"{moves['usual_ms'] / 1000:.1f} s ago are still here ({where})"
            )
        clock = idc.get("clock", {})
        if clock.get("skewed"):
            said.append(f"its clock is {clock.get('offset_ms', 0):+.0f} ms off")
        routes, fronts = idc.get("routes") or [], len(idc.get("gateways", []))
        if routes and (by := sum(row["gateways"] for row in routes)) < fronts:
            said.append(f"{fronts - by} of {fronts} gateways have no route instance")
        if rolling := document.get("rolling", {}).get(name):
            said.append(f"gateways are being rolled out: {rolling}")
        if said:
            found.append(f"{name}: {', '.join(said)}")
    others = [name for name in document["processes"] if name not in document["idcs"]]
    states = {name: process_of(document, name) for name in others}  # link proxy, witness, engines
    found += [f"{name}: {state}" for name, state in states.items() if state != "running"]
    known = {"linkproxy", document["witness_name"]}
    engines = [
        name
        for name in others
        if name not in known and idc_of(name) == name and states[name] == "running"
    ]
    return [*found, f"engines: {', '.join(engines)}"] if engines else found


def _move(policy: Mapping[str, Any]) -> str:
    state, waiting = policy.get("operation_state") or "running", policy.get("waiting_for") or ""
    return f"{policy['operation']}: {state}{'; waiting: ' + waiting if waiting else ''}"


def _rates(document: Mapping[str, Any]) -> str:
    shown = []
    for name, idc in document["idcs"].items():
        rates = idc.get("rates") or {}
        accepted, pushed = rates.get("accepted_per_s", 0), rates.get("pushed_per_s", 0)
        if accepted or pushed:
            shown.append(f"{name} {accepted:.0f} accepted, {pushed:.0f} pushed")
    return "; ".join(shown)


def _on_engines(idc: Mapping[str, Any]) -> bool:
    kv = idc.get("kv") or {}
    return bool(
        idc.get("mirror")
        or kv.get("move")
        or kv.get("engine", "embedded") != "embedded"
        or (idc.get("log") or {}).get("durability", "fsync") != "fsync"
    )


def _engines(document: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("IDC", "LOG", "KV", "MIRRORMAKER 2"):
        table.add_column(column, overflow="fold")
    for name, idc in document["idcs"].items():
        kv, log = idc.get("kv") or {}, idc.get("log") or {}
        engine = str(kv.get("engine", "-"))
        if move := kv.get("move"):
            left = move["batches"] - move["played"]
            engine += f" ({move['phase']}, {left} left)"
        flows = [_flow(source, flow) for source, flow in (idc.get("mirror") or {}).items()]
        table.add_row(name, str(log.get("durability", "-")), engine, "; ".join(flows) or "-")
    return table


def _flow(source: str, flow: Mapping[str, Any]) -> str:
    behind, age = flow["behind"], flow["worker_age_s"]
    where = _partitions(flow["partitions"])
    problem = f" ({flow['problem']})" if flow["problem"] else ""
    return (
        f"{source} {'?' if behind is None else behind}{where}, "
        f"{'no heartbeat' if age is None else f'{age:.0f} s'}{problem}"
    )


def _partitions(of_flow: Mapping[str, Mapping[str, int]]) -> str:
    """Which of them are behind, those first that are most."""
    rows = [(number, row["behind"]) for number, row in of_flow.items() if row["behind"]]
    rows.sort(key=lambda row: -row[1])
    shown = [f"{number}: {behind}" for number, behind in rows[:PARTITIONS_SHOWN]]
    more = ["..."] if len(rows) > PARTITIONS_SHOWN else []
    return f" (partition {', '.join([*shown, *more])})" if shown else ""


def _lag(document: Mapping[str, Any]) -> Table:
    """Row: whose log; column: who has applied it how late."""
    names = list(document["idcs"])
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("LOG OF", no_wrap=True)
    for name in names:
        table.add_column(f"AT {name}", justify="right", no_wrap=True)
    origins = {origin for idc in document["idcs"].values() for origin in (idc.get("lag") or {})} | {
        str(idc["origin"]) for idc in document["idcs"].values() if idc.get("origin")
    }
    for origin in sorted(origins):
        cells = []
        for name in names:
            lag = (document["idcs"][name].get("lag") or {}).get(origin)
            own = document["idcs"][name].get("origin") == origin
            cells.append("·" if own else _lag_cell(lag))
        table.add_row(origin, *cells)
    return table


def _lag_cell(lag: Mapping[str, Any] | None) -> str:
    if lag is None:
        return "-"
    return f"{lag.get('ms') or 0:.0f}; {lag.get('records', 0)}"


def certificates(document: Mapping[str, Any]) -> str:
    """Days left of each IDC's certificate and of the CA, the least that any of them says."""
    rows = {
        name: (idc.get("last") or idc).get("certificates") for name, idc in document["idcs"].items()
    }
    known = {name: row for name, row in rows.items() if row}
    if not known:
        return ""
    days = ", ".join(f"{name} {row['days_left']}" for name, row in known.items())
    ca_days = min(row["ca_days_left"] for row in known.values())
    return f"days until certificates expire: {days}; CA {ca_days}"


def _is_faulty(link: Mapping[str, Any]) -> bool:
    return link["mode"] != "pass" or not link["as_configured"]


def _links(links: list[dict[str, Any]]) -> Table:
    table = Table("FROM", "TO", "MODE", "DELAY", "LOSS", box=None, pad_edge=False)
    for link in links:
        table.add_row(
            link["from"], link["to"], link["mode"], f"{link['delay_ms']:g} ms", f"{link['loss']:g}"
        )
    return table


def alarms(document: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for name, idc in [*document["idcs"].items(), ("witness", document["witness"] or {})]:
        if "error" in idc:
            found.append((name, idc["error"]))
        found += [(name, sentence) for sentence in idc.get("alarms", [])]
        found += [
            (name, f"cannot reach the registry of {other}")
            for other, state in idc.get("registries", {}).items()
            if state != "ok"
        ]
    return found
