"""The status documents of all IDCs as one document, and that as tables. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from imcore.errors import ImError
from imcore.region.model import Region
from imctl.target.base import Unit

COLOURS = {
    "active": "green",
    "cordoned": "yellow",
    "draining": "yellow",
    "drained": "yellow",
    "recovering": "cyan",
    "failed": "red",
    "retired": "dim",
}


def document_of(
    region: Region,
    units: Iterable[Unit],
    found: Mapping[str, dict[str, Any] | ImError],
    links: dict[str, Any] | ImError | None,
) -> dict[str, Any]:
    """One plain document: what -o json prints."""
    processes = {unit.name: {"state": unit.state, "pid": unit.pid} for unit in units}
    answers = {
        name: {"error": str(answer)} if isinstance(answer, ImError) else answer
        for name, answer in found.items()
    }
    return {
        "region": region.metadata.name,
        "policy": newest_policy(answers.values()),
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


def render(document: Mapping[str, Any]) -> RenderableType:
    policy = document["policy"]
    head = f"{document['region']}  policy epoch {policy.get('epoch', 'unknown')}"
    if policy.get("stale"):
        head += "  STALE: no majority of registries answers"
    parts: list[RenderableType] = [Text(head, style="bold"), _idcs(document)]
    if any(map(_on_engines, document["idcs"].values())):
        parts += [Text("\nengines (MirrorMaker 2: records behind, seconds since a sign of life)")]
        parts += [_engines(document)]
    if len(document["idcs"]) > 1:
        parts += [Text("\nreplication lag (ms; records behind)"), _lag(document)]
    faulty = [link for link in document["links"] if _is_faulty(link)]
    if faulty:
        parts += [Text("\nlinks under a fault"), _links(faulty)]
    for name, sentence in alarms(document):
        parts.append(Text(f"! {name}: {sentence}", style="red"))
    return Group(*parts)


def state_of(document: Mapping[str, Any], name: str) -> str:
    """The policy's state of an IDC, whether it answers or not."""
    states = document["policy"].get("idcs", {})
    return str(states.get(name, {}).get("state", "unknown"))


def process_of(document: Mapping[str, Any], name: str) -> str:
    state = str(document["processes"].get(name, {}).get("state", "not started"))
    answer = document["idcs"].get(name, document["witness"]) or {}
    silent = state == "running" and "error" in answer
    return "unreachable" if silent else state


def _idcs(document: Mapping[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="bold")
    for column in ("IDC", "PLACE", "ORIGIN", "STATE", "PROCESS"):
        table.add_column(column, no_wrap=column != "PLACE", overflow="ellipsis")
    for column in ("CONNS", "ACK/S", "PUSH/S", "CLOCK"):
        table.add_column(column, justify="right", no_wrap=True)
    for name, idc in document["idcs"].items():
        state, process = state_of(document, name), process_of(document, name)
        table.add_row(
            name,
            document["places"].get(name, ""),
            str(idc.get("origin", "-")),
            Text(state, style=COLOURS.get(state, "")),
            Text(process, style="" if process == "running" else "red"),
            *_figures(idc),
        )
    if document["witness"] is not None:
        process = process_of(document, document["witness_name"])
        table.add_row(document["witness_name"], "", "", "votes", process)
    ours = {*document["idcs"], document["witness_name"], "linkproxy"}
    for name, unit in document["processes"].items():
        if name not in ours:  # an engine of an IDC
            state = str(unit["state"])
            table.add_row(
                name, "", "", "engine", Text(state, style="" if state == "running" else "red")
            )
    return table


def _figures(idc: Mapping[str, Any]) -> tuple[str, str, str, str]:
    if "error" in idc or not idc:
        return ("-", "-", "-", "-")
    connections = sum(int(row.get("connections", 0)) for row in idc.get("gateways", []))
    rates, clock = idc.get("rates", {}), idc.get("clock", {})
    return (
        str(connections),
        f"{rates.get('accepted_per_s', 0):.0f}",
        f"{rates.get('pushed_per_s', 0):.0f}",
        f"{clock.get('offset_ms', 0):+.0f} ms",
    )


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
    problem = f" ({flow['problem']})" if flow["problem"] else ""
    return (
        f"{source} {'?' if behind is None else behind}, "
        f"{'no sign' if age is None else f'{age:.0f} s'}{problem}"
    )


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
