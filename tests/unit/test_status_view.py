"""The status view, from documents of the form that docs of the Admin service promise."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from imcore.errors import Unavailable
from imcore.region.load import load_region
from imctl.statusview import (
    document_of,
    headroom,
    policies_said,
    process_of,
    render,
    state_of,
)
from imctl.target.base import Unit

REGION = load_region(Path(__file__).resolve().parents[2] / "regions" / "three-idc.yaml")


def answer(idc: str, epoch: int, states: dict[str, str]) -> dict[str, Any]:
    others = [name for name in ("fra", "iad", "sin") if name != idc]
    return {
        "idc": idc,
        "origin": f"{idc}.1",
        "serving": True,
        "policy": {
            "epoch": epoch,
            "stale": False,
            "idcs": {name: {"state": state, "ramp": 100} for name, state in states.items()},
        },
        "gateways": [{"gateway": f"{idc}-gw-1", "connections": 100, "port": 17110}],
        "sessions": 98,
        "rates": {"accepted_per_s": 123.4, "pushed_per_s": 234.5},
        "lag": {f"{name}.1": {"records": 3, "ms": 47.2} for name in others},
        "clock": {"offset_ms": -2, "skewed": False},
        "alarms": [],
        "registries": {"fra": "ok", "iad": "ok", "sin": "ok"},
    }


ACTIVE = {"fra": "active", "iad": "active", "sin": "active"}


def build(**found: Any) -> dict[str, Any]:
    units = [Unit(name, "running", 100 + n) for n, name in enumerate(("fra", "iad", "sin"))]
    return document_of(REGION, units, found, {"links": []}, dict.fromkeys(found, 0.21))


def shown(document: dict[str, Any], width: int = 80) -> str:
    console = Console(width=width, no_color=True, highlight=False)
    with console.capture() as capture:
        console.print(render(document))
    return capture.get()


def test_three_healthy_idcs_fit_eighty_columns() -> None:
    document = build(**{name: answer(name, 4, ACTIVE) for name in ACTIVE})
    text = shown(document)
    assert max(map(len, text.splitlines())) <= 80
    assert "three-idc  policy epoch 4" in text
    row = next(line for line in text.splitlines() if line.startswith("iad "))
    assert row.split() == [
        "iad", "active", "100", "%", "1", "98", "47", "ms", "3", "4", "94", "%", "0.2", "s",
    ]  # fmt: skip
    assert text.splitlines()[1].split() == [
        "IDC", "STATE", "WEIGHT", "GATEWAYS", "SESSIONS", "KV", "LAG", "LOG", "LAG", "EPOCH",
        "HEADROOM", "AGE",
    ]  # fmt: skip
    assert "iad 123 accepted, 234 pushed" in " ".join(text.split())
    lag = next(line for line in text.splitlines() if line.startswith("sin.1"))
    assert lag.split() == ["sin.1", "47;", "3", "47;", "3", "·"]
    assert "!" not in text
    json.dumps(document)


def test_an_idc_that_does_not_answer_is_shown_as_such_and_the_newest_policy_counts() -> None:
    failed = {**ACTIVE, "fra": "failed"}
    document = build(
        fra=Unavailable("fra does not answer"),
        iad=answer("iad", 5, failed),
        sin=answer("sin", 4, ACTIVE),
    )
    assert state_of(document, "fra") == "failed"
    assert process_of(document, "fra") == "unreachable"
    assert document["policy"]["epoch"] == 5
    assert "! fra: fra does not answer" in shown(document)
    json.dumps(document)


def test_a_process_that_is_gone_or_paused_is_shown_as_such_and_still_fits() -> None:
    found = {name: answer(name, 4, {**ACTIVE, "fra": "recovering"}) for name in ACTIVE}
    units = [Unit("fra", "gone", 1), Unit("iad", "paused", 2), Unit("sin", "running", 3)]
    silent: dict[str, Any] = {"fra": Unavailable("x"), "iad": Unavailable("y"), "sin": found["sin"]}
    document = document_of(REGION, units, silent, None)
    lines = shown(document).splitlines()
    assert next(line for line in lines if line.startswith("fra ")).split()[:3] == [
        "fra", "recovering", "0",
    ]  # fmt: skip
    assert "fra: gone" in lines
    assert "iad: paused" in lines
    assert not any(line.startswith("sin: ") for line in lines)
    assert not any("…" in line for line in lines)
    assert max(map(len, lines)) <= 80


def test_what_a_silent_idc_said_last_stays_with_its_age_and_its_weight_is_the_policys() -> None:
    found: dict[str, Any] = {name: answer(name, 5, {**ACTIVE, "fra": "failed"}) for name in ACTIVE}
    found["iad"]["policy"]["idcs"]["iad"]["ramp"] = 50
    found["sin"]["policy"]["idcs"]["iad"]["ramp"] = 50
    last, found["fra"] = found["fra"], Unavailable("fra does not answer")
    document = document_of(REGION, [], found, None, {"fra": 7.5, "iad": 0.04})
    document["idcs"]["fra"]["last"] = last
    rows = {line.split()[0]: line.split() for line in shown(document).splitlines() if line}
    assert rows["fra"][1:4] == ["failed", "0", "%"]
    assert rows["fra"][-2:] == ["7.5", "s"]
    assert rows["iad"][2:4] == ["50", "%"]
    assert rows["sin"][-1] == "-"  # how old it is nobody said


def test_gateways_in_processes_of_their_own_are_no_engines_and_say_what_they_wait_for() -> None:
    units = [Unit(name, "running", 1) for name in (*ACTIVE, "fra.gateway-1")]
    units += [Unit("fra.gateway-2", "gone", 0)]
    found = {name: answer(name, 4, ACTIVE) for name in ACTIVE}
    document = document_of(REGION, units, found, None)
    document["rolling"] = {"fra": "gateway 2 of 2 gets the settings that are wanted"}
    said = " ".join(shown(document).split())
    assert "fra: gateways are being rolled out: gateway 2 of 2 gets the settings" in said
    assert "fra.gateway-2: gone" in said and "engines" not in said


def test_gateways_without_a_route_instance_are_counted_where_there_are_some() -> None:
    found = {name: answer(name, 4, ACTIVE) for name in ACTIVE}
    gateways = [{"gateway": f"fra-gw{number}"} for number in (1, 2, 3)]
    for idc, linked in (("fra", [1, 0]), ("iad", [3])):
        rows = [{"route": f"r{n}", "gateways": n} for n in linked]
        found[idc] |= {"gateways": gateways, "routes": rows}
    said = shown(document_of(REGION, [], found, None))
    assert "2 of 3 gateways have no route instance" in said
    assert said.count("route instance") == 1


def test_sessions_that_hang_in_a_move_are_counted_by_gateway() -> None:
    found = {name: answer(name, 5, ACTIVE) for name in ACTIVE}
    found["fra"]["moves"] = {"usual_ms": 3_400, "stuck": {"fra-gw1.1": 2}}
    found["iad"]["moves"] = {"usual_ms": 3_000, "stuck": {}}
    said = " ".join(shown(build(**found)).split())
    assert "fra: 2 sessions asked to move more than 3.4 s ago are still here (fra-gw1.1: 2)" in said
    assert "iad: 0" not in said


def test_the_log_of_an_idc_that_is_given_up_is_nobodys_lag() -> None:
    found = {name: answer(name, 5, {**ACTIVE, "fra": "failed"}) for name in ACTIVE}
    found["iad"]["lag"]["fra.1"] = {"records": 70, "ms": 99_000}
    row = next(line for line in shown(build(**found)).splitlines() if line.startswith("iad "))
    assert row.split()[6:9] == ["47", "ms", "3"]


def test_headroom_is_that_of_what_is_scarcer() -> None:
    idc = {"sessions": 900, "rates": {"accepted_per_s": 10.0}}
    assert headroom(idc, {"sessions": 1_000, "messages_per_s": 1_000}) == pytest.approx(0.1)
    assert headroom(idc, {"sessions": 9_000, "messages_per_s": 20}) == pytest.approx(0.5)
    assert headroom(idc, {"sessions": 800, "messages_per_s": 20}) == 0.0


def test_a_move_under_way_says_its_state_and_what_it_waits_for() -> None:
    found = {name: answer(name, 4, ACTIVE) for name in ACTIVE}
    for row in found.values():
        row["policy"] |= {
            "operation": "drain-fra-4",
            "operation_state": "paused by operator",
            "waiting_for": "fra has 3 sessions",
        }
    words = " ".join(shown(build(**found)).split())
    assert "drain-fra-4: paused by operator; waiting: fra has 3 sessions" in words


def test_the_witness_and_engines_that_run_are_there_too() -> None:
    found = {name: answer(name, 4, ACTIVE) for name in ACTIVE}
    document = build(**found)
    document |= {"witness": {"idc": "witness"}, "witness_name": "witness"}
    units = ("linkproxy", "witness", "fra-etcd", "sin-kafka")
    document["processes"] |= {name: {"state": "running", "pid": 9} for name in units}
    document["processes"]["iad-pd"] = {"state": "gone", "pid": 9}
    lines = shown(document).splitlines()
    assert next(line for line in lines if line.startswith("witness")).split() == [
        "witness", "votes",
    ]  # fmt: skip
    assert "engines: fra-etcd, sin-kafka" in lines
    assert "iad-pd: gone" in lines


def test_an_incarnation_and_a_skewed_clock_are_worth_a_line() -> None:
    found = {name: answer(name, 4, ACTIVE) for name in ACTIVE}
    found["fra"] |= {"origin": "fra.2", "clock": {"offset_ms": 700, "skewed": True}}
    assert "fra: serves as fra.2, its clock is +700 ms off" in shown(build(**found)).splitlines()


def test_alarms_stale_policies_and_lost_registries_are_shown() -> None:
    iad = answer("iad", 4, ACTIVE)
    iad["policy"]["stale"] = True
    iad["alarms"] = ["the clock is 600000 ms ahead"]
    iad["registries"]["sin"] = "unreachable"
    text = shown(build(fra=iad | {"idc": "fra"}, iad=iad, sin=iad))
    assert "STALE" in text
    assert "! iad: the clock is 600000 ms ahead" in text
    assert "! iad: cannot reach the registry of sin" in text


def test_only_links_under_a_fault_are_listed() -> None:
    link = {
        "from": "fra", "to": "iad", "mode": "drop", "delay_ms": 45.0, "jitter_ms": 3.0,
        "loss": 0.0, "rate_kbit": 1e6, "as_configured": True, "connections": 2,
    }  # fmt: skip
    healthy = link | {"from": "iad", "to": "fra", "mode": "pass"}
    document = build(**{name: answer(name, 4, ACTIVE) for name in ACTIVE})
    assert "links with a fault" not in shown(document | {"links": [healthy]})
    text = shown(document | {"links": [link, healthy]})
    assert "links with a fault" in text
    assert "fra   iad  drop" in text


def test_nothing_answers_at_all() -> None:
    document = build(**{name: Unavailable("gone") for name in ACTIVE})
    text = shown(document)
    assert "policy epoch unknown" in text
    assert text.count("unreachable") == 3


def test_engines_are_shown_where_there_are_some() -> None:
    found = {name: answer(name, 4, ACTIVE) for name in ACTIVE}
    for row in found.values():
        row["log"], row["kv"] = {"durability": "fsync"}, {"engine": "embedded", "move": None}
    assert "MIRRORMAKER" not in shown(build(**found))
    behind = {"0": {"behind": 0}, "1": {"behind": 2}, "3": {"behind": 1}}
    well = {"behind": 3, "partitions": behind, "worker_age_s": 0.8, "problem": ""}
    away: dict[str, Any] = {
        "behind": None, "partitions": {}, "worker_age_s": None, "problem": "sin's Kafka is off",
    }  # fmt: skip
    found["fra"]["mirror"] = {"iad": well, "sin": away}
    found["fra"]["log"] = {"durability": "flush"}
    move = {"phase": "catch up", "batches": 900, "played": 700}
    found["iad"]["kv"] = {"engine": "embedded", "move": move}
    found["sin"]["kv"] = {"engine": "tikv", "move": None}
    for width in (80, 120):
        text = shown(build(**found), width)
        assert max(map(len, text.splitlines())) <= width
        words = " ".join(text.split())
        assert "iad 3 (partition 1: 2, 3: 1), 1 s; sin ?, no heartbeat" in words
        assert "embedded (catch up, 200 left)" in words
    assert "sin fsync tikv -" in words
    assert "fra flush embedded" in words


def test_of_many_partitions_those_that_are_furthest_behind_are_shown() -> None:
    found = {name: answer(name, 4, ACTIVE) for name in ACTIVE}
    behind = {str(number): {"behind": number % 7} for number in range(64)}
    flow = {"behind": 186, "partitions": behind, "worker_age_s": 0.8, "problem": ""}
    found["fra"]["mirror"] = {"iad": flow}
    words = " ".join(shown(build(**found), 120).split())
    assert "iad 186 (partition 6: 6, 13: 6, 20: 6, ...), 1 s" in words


def test_days_left_of_certificates_stand_in_one_line() -> None:
    answers = {name: answer(name, 4, ACTIVE) for name in ACTIVE}
    for number, name in enumerate(answers):
        answers[name]["certificates"] = {"days_left": 800 + number, "ca_days_left": 3600 + number}
    said = "days until certificates expire: fra 800, iad 801, sin 802; CA 3600"
    assert said in shown(build(**answers)).splitlines()
    assert "certificates" not in shown(build(**{name: answer(name, 4, ACTIVE) for name in ACTIVE}))


def test_what_idcs_say_of_their_policies_is_equal_where_the_contents_are() -> None:
    states = {"fra": "active", "iad": "active"}
    answers = {
        "fra": answer("fra", 3, states),
        "iad": answer("iad", 3, states),
        "sin": answer("sin", 3, {**states, "iad": "failed"}),
    }
    answers["new"] = {"policy": {"epoch": 0}}  # knows none yet
    said = policies_said(answers)
    assert said.keys() == {"fra", "iad", "sin"}
    assert said["fra"] == said["iad"] != said["sin"]
    assert said["fra"][0] == said["sin"][0] == 3
