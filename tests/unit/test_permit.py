"""What an operator may ask for, and may swap in a registry."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from imcore.roles import Role
from services.control.acceptor import (
    Ballot,
    Member,
    Record,
    Slot,
    accept,
    encode,
    promise,
    record_key,
)
from services.control.permit import role_for, swap_refusal
from services.control.rules import Change, Kind
from services.policy.document import IdcPolicy, IdcState, Policy

KEY = record_key("ab", 3)
OWN = Ballot(7, "operator.1f")
POLICY = Policy(4, {"fra": IdcPolicy(), "iad": IdcPolicy(IdcState.RETIRED)})
BEFORE = Record(
    True,
    {"fra": Member("ab")},
    {
        "policy": Slot(Ballot(5, "fra.1"), Ballot(5, "fra.1"), POLICY.to_json()),
        "register/fra": Slot(Ballot(2, "fra.1"), Ballot(2, "fra.1"), b"{}"),
        **{
            key: Slot(Ballot(2, "a.1"), Ballot(2, "a.1"), b'{"seq":5,"hash":"00"}')
            for key in ("audit/imctl", "audit/imctl@ops-1")
        },
    },
    Ballot(1, "fra"),
)


def judge(after: Record | bytes | None, before: Record = BEFORE, key: bytes = KEY) -> str:
    assert after is not None
    data = after if isinstance(after, bytes) else encode(after)
    return swap_refusal(key, encode(before), data, "operator")


def accepted(key: str, value: bytes | None, ballot: Ballot = OWN) -> Record | None:
    return accept(BEFORE, key, ballot, value)


def slot(key: str, **changed: object) -> Record:
    one = BEFORE.slot(key)._replace(**changed)  # type: ignore[arg-type]
    return replace(BEFORE, slots={**BEFORE.slots, key: one})


def test_moves_are_an_operators_and_retire_and_overrides_an_admins() -> None:
    assert role_for(Change(Kind.DRAIN, "fra", "r", "operator")) is Role.OPERATOR
    assert role_for(Change(Kind.ABORT, "", "r", "operator", operation="x")) is Role.OPERATOR
    assert role_for(Change(Kind.RETIRE, "fra", "r", "operator")) is Role.ADMIN
    forced = Change(Kind.DRAIN, "fra", "r", "operator", overrides=("headroom",))
    assert role_for(forced) is Role.ADMIN


def test_a_round_of_an_operator_over_the_policy_an_operation_and_its_audit_passes() -> None:
    moved = replace(POLICY, epoch=5, idcs={**POLICY.idcs, "fra": IdcPolicy(IdcState.DRAINING)})
    assert judge(promise(BEFORE, "policy", OWN)) == ""
    promised = promise(BEFORE, "policy", OWN)
    assert promised is not None
    assert judge(accept(promised, "policy", OWN, moved.to_json()), promised) == ""
    assert judge(accepted("policy", POLICY.to_json())) == ""  # settles what it found
    assert judge(promise(BEFORE, "op/drain-fra-1", OWN)) == ""
    assert judge(accepted("op/drain-fra-1", b"{}")) == ""
    assert judge(accepted("op/none-yet", None)) == ""
    for key in ("audit/imctl", "audit/imctl@ops-1", "audit/imctl@ops-2"):
        assert judge(accepted(key, b'{"seq":6,"hash":"11"}')) == ""


RETIRED = replace(POLICY, epoch=5, idcs={**POLICY.idcs, "fra": IdcPolicy(IdcState.RETIRED)})
REFUSED: dict[str, Record | bytes | None] = {
    "Writing register/fra": accepted("register/fra", b"{}"),
    "Writing audit/fra": promise(BEFORE, "audit/fra", OWN),
    "Retiring fra": accepted("policy", RETIRED.to_json()),
    "Going back to an older policy": accepted("policy", replace(POLICY, epoch=3).to_json()),
    "An epoch far ahead": accepted("policy", replace(POLICY, epoch=2**70).to_json()),
    "Removing policy": accepted("policy", None),
    "Lowering the anchor of an audit log": accepted("audit/imctl", b'{"seq":4,"hash":"22"}'),
    "Acting under another's ballot": promise(BEFORE, "policy", Ballot(9, "fra.1")),
    "A ballot far ahead of all others": promise(BEFORE, "policy", Ballot(10**9, "operator.1")),
    "Going back behind a promise": slot("policy", promised=Ballot(1, "operator.1")),
    "Changing who is a member": replace(BEFORE, members={"fra": Member("cd", 2)}),
    "Taking a value out of the registry": replace(BEFORE, slots={}),
    "Writing what is no record": b"[]",
}


@pytest.mark.parametrize("why", REFUSED)
def test_an_operator_may_not_swap_anything_else(why: str) -> None:
    assert judge(REFUSED[why]) == why


def test_the_anchor_of_a_machine_is_not_lowered_either() -> None:
    lower = accepted("audit/imctl@ops-1", b'{"seq":4,"hash":"22"}')
    assert judge(lower) == "Lowering the anchor of an audit log"
    assert judge(accepted("audit/imctl2", b"{}")) == "Writing audit/imctl2"


@pytest.mark.parametrize("value", [b"rubbish", b"{}", b'{"seq":-5,"hash":"22"}'])
def test_the_first_anchor_of_a_machine_is_one(value: bytes) -> None:
    """Else nobody could check the end of any log."""
    assert judge(accepted("audit/imctl@new-1", value)) == "Writing what is no record"
    assert judge(accepted("audit/imctl@ops-1", value))


@pytest.mark.parametrize(
    "changed",
    [
        replace(BEFORE, joined=False),
        replace(BEFORE, floor=Ballot(9, "operator.1")),
        replace(BEFORE, slots={**BEFORE.slots, "policy": Slot(OWN, OWN, b"rubbish")}),
        replace(BEFORE, slots={**BEFORE.slots, "policy": Slot(OWN, BEFORE.floor, b"{}")}),
    ],
)
def test_nor_a_record_that_no_round_makes(changed: Record) -> None:
    assert judge(changed)


@pytest.mark.parametrize("counter", [float("inf"), 1e3, True, "9", None])
def test_a_counter_is_a_number_that_the_next_one_can_pass(counter: object) -> None:
    document = json.loads(encode(BEFORE))
    document["slots"]["policy"][0] = [counter, "operator.1"]
    assert judge(json.dumps(document, separators=(",", ":")).encode())


def test_what_is_equal_but_written_otherwise_is_a_change() -> None:
    document = json.loads(encode(BEFORE))
    document["slots"]["register/fra"][0][0] = 2.0
    assert judge(json.dumps(document, separators=(",", ":")).encode()) == "Writing register/fra"
    for other in (encode(BEFORE) + b" ", encode(BEFORE)[:-1] + b',"more":1}'):
        assert judge(other) == "Writing what is no record"


def test_an_accepted_value_is_not_exchanged_under_its_own_ballot() -> None:
    mine = accepted("policy", POLICY.to_json())
    assert mine is not None
    other = accept(mine, "policy", OWN, replace(POLICY, epoch=9).to_json())
    assert judge(other, mine)


def test_only_records_that_exist_are_swapped() -> None:
    assert swap_refusal(KEY, None, encode(BEFORE), "operator") == "Making a record"
    for key in (b"vote/fra/iad", b"ipconf/x", b"caspaxos", b""):
        assert judge(promise(BEFORE, "policy", OWN), key=key)
