"""docs/output.schema.json: what `-o json` prints. Real commands are held to it where tests run
them (``imctl.testing.schema.check_output``); here, that it refuses what is not so."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest

from imctl.commands.deploy import _plain as plain_rollout
from imctl.commands.op import _plain as plain_operation
from imctl.main import COMMANDS
from imctl.plan.document import Plan, as_json
from imctl.plan.load import Away, Refusal, Survivor
from imctl.rollout.record import Kind, Rollout, Row
from imctl.testing import schema
from services.control.operations import Operation, Step
from services.control.slow import Slow, Took, Usual
from services.policy.document import OperationState

RUNNING = Operation(
    "drain-fra-2", "drain", "fra", "", "operator", "r", OperationState.RUNNING, 1,
    steps=(Step(1, 2, "epoch 2", {}, "drain"),),
)  # fmt: skip
AWAY = Away(
    "fra", 3, 0.5, (Survivor("iad", 5, 80.0, 1.0, 160.0),), (Refusal("headroom", "no", "wanted"),)
)
SLOW = Slow(Took(0, "drain", 9_000, over=False, whole=False), Usual(5_000, 4))


def plain(document: Any) -> Any:
    return json.loads(json.dumps(document))


def documents() -> dict[str, Any]:
    rollout = Rollout("deploy-1", Kind.DEPLOY, "a", "b", ("fra",), rows=(Row(1, "fra", "begins"),))
    return {
        "operation": plain_operation(RUNNING, [SLOW]),
        "operations": [plain_operation(RUNNING, [])],
        "rollout": plain_rollout(rollout),
        "plan": as_json(Plan("three-idc", True, (), ("fra",), (AWAY,))),
    }


@pytest.mark.parametrize("name", documents())
def test_what_is_printed_is_as_published_and_nothing_else_is(name: str) -> None:
    document = plain(documents()[name])
    schema.check(document, name)
    one = document[0] if isinstance(document, list) else document
    for wrong in ({**one, "more": 1}, {key: one[key] for key in list(one)[1:]}):
        with pytest.raises(jsonschema.ValidationError):
            schema.check([wrong] if isinstance(document, list) else wrong, name)


@pytest.mark.parametrize("state", OperationState)
def test_every_state_of_an_operation_is_published(state: OperationState) -> None:
    document = plain(plain_operation(RUNNING, []))
    schema.check(document | {"state": str(state)}, "operation")


def test_each_schema_is_some_commands() -> None:
    lines = [
        *((name,) for name in COMMANDS),
        ("op", "list"), ("op", "show"), ("op", "pause"), ("audit",), ("audit", "verify"),
        ("audit", "rules"),
        ("drill", "simulate"), ("scale", "fra", "gateway=2"),
        ("scale", "fra", "gateway=2", "--dry-run"),
    ]  # fmt: skip
    found = {schema.of(line if line != ("op",) else ("op", "list")) for line in lines}
    parts = {"blocker", "forecast"}
    assert found - {""} | parts == set(schema.names())


def test_output_that_is_not_as_published_is_found() -> None:
    with pytest.raises(jsonschema.ValidationError):
        schema.check_output(("op", "list", "-o", "json"), '[{"id": "x"}]')
    schema.check_output(("op", "list"), "ID  STATE")
    schema.check_output(("pki", "show", "-o", "json"), "[]")
