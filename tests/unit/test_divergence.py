"""What a returning IDC holds and the others do not, and the other way round."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from imctl.divergenceview import hash_lines, hashes_document, lines
from services.control.divergence import Row, above_seals, as_document, compare
from services.control.evaluate import Decision
from services.control.evidence import Evidence, IdcFacts, facts_from_status
from services.control.operations import summary
from services.control.rules import Change, Kind

IDCS = ("fra", "iad", "sin")
HELD = {"fra.1": (8, 5), "iad.1": (10, 10), "sin.1": (10, 10)}
SEAL = {"fra.1": (8, 5)}


def facts(idc: str, **fields: Any) -> IdcFacts:
    ends = (4, 4) if idc == "fra" else (10, 10)
    origin = "fra.2" if idc == "fra" else f"{idc}.1"
    held = HELD | {"fra.2": (4, 4)}
    basis = IdcFacts(0, origin, ends=ends, held=held, applied=held, seals=SEAL)
    return replace(basis, **fields)


def evidence(**changed: IdcFacts) -> Evidence:
    return Evidence({idc: facts(idc) for idc in IDCS} | changed)


def rows(found: Evidence) -> dict[str, Row]:
    return {row.origin: row for row in compare(found, "fra", IDCS).rows}


def test_once_all_hold_the_same_no_origin_says_anything() -> None:
    found = compare(evidence(), "fra", IDCS)
    assert (found.origin, found.others, found.silent) == ("fra.2", ("iad", "sin"), ())
    assert [row.origin for row in found.rows] == ["fra.1", "fra.2", "iad.1", "sin.1"]
    assert not any(row.says_something for row in found.rows)
    assert found.rows[0].sealed_at == 13


def test_what_only_one_side_holds_is_summed_over_the_partitions() -> None:
    fra = facts("fra", ends=(9, 6), held={"iad.1": (7, 10), "fra.1": (8, 5)}, applied={})
    found = rows(evidence(fra=fra))
    assert found["fra.2"].only_here == 5 + 2
    assert found["fra.2"].unfolded == 9 + 6
    assert (found["iad.1"].missing, found["iad.1"].unfolded) == (3, 17)
    assert found["sin.1"].missing == 20  # not a record of it is here


def test_what_one_of_the_others_holds_is_not_only_here_and_is_missing() -> None:
    sin = facts("sin", held={**HELD, "fra.2": (1, 1), "iad.1": (12, 9)})
    iad = facts("iad", held={**HELD, "fra.2": (4, 0)})
    found = rows(evidence(sin=sin, iad=iad))
    assert found["fra.2"].only_here == 3
    assert found["iad.1"].missing == 2


def test_what_lies_above_a_seal_counts_for_nobody_and_is_to_be_published_again() -> None:
    fra = facts("fra", held={**HELD, "fra.1": (11, 5)}, applied={**HELD, "fra.1": (8, 7)})
    sin = facts("sin", held={**HELD, "fra.1": (9, 5)}, seals={}, published_again={"fra.1": 6})
    row = rows(evidence(fra=fra, sin=sin))["fra.1"]
    assert (row.only_here, row.missing) == (0, 0)
    assert row.to_publish == {"fra": 3 + 2, "sin": 1}
    assert row.published == {"sin": 6}
    assert above_seals(fra, SEAL) == {"fra.1": 5}
    assert above_seals(facts("fra"), SEAL) == {}


def test_a_seal_that_names_fewer_partitions_ends_the_others_at_nothing() -> None:
    fra = facts("fra", held={**HELD, "fra.1": (8, 5)}, seals={"fra.1": (8,)})
    row = rows(Evidence({"fra": fra}))["fra.1"]
    assert (row.only_here, row.to_publish) == (8, {"fra": 5})


def test_of_older_seals_only_those_that_say_something_are_shown() -> None:
    old = {f"fra.{n}": (1, 1) for n in range(1, 12)}
    fra = facts("fra", origin="fra.12", held=old, applied=old | {"fra.3": (1, 4)}, seals=old)
    shown = [row.origin for row in compare(Evidence({"fra": fra}), "fra", ["fra"]).rows]
    # With nobody to compare with, each record is only here.
    assert shown == [f"fra.{n}" for n in range(1, 13)]
    iad = replace(facts("iad"), held=old, applied=old, seals=old)
    both = Evidence({"fra": fra, "iad": iad})
    few = [row.origin for row in compare(both, "fra", ["fra", "iad"]).rows]
    assert few == ["fra.3", "fra.11", "fra.12", "iad.1"]


def test_who_does_not_answer_is_named_and_never_taken_for_equal() -> None:
    found = compare(Evidence({"fra": facts("fra")}), "fra", IDCS)
    assert found.silent == ("iad", "sin")
    assert "iad, sin do not answer" in "\n".join(lines(as_document(found)))
    gone = compare(Evidence({"iad": facts("iad")}), "fra", IDCS)
    assert (gone.origin, gone.rows) == ("", ())
    assert "fra does not answer" in "\n".join(lines(as_document(gone)))


def test_the_lines_show_what_differs_and_fit_80_columns() -> None:
    fra = facts("fra", held={**HELD, "fra.1": (11, 5), "iad.1": (7, 10)})
    sin = facts("sin", published_again={"fra.1": 6})
    said = lines(as_document(compare(evidence(fra=fra, sin=sin), "fra", IDCS)))
    assert said == [
        "divergence of fra (fra.2) from iad, sin, in records:",
        "  fra.1: sealed at 13; to republish: fra 3; republished: sin 6",
        "  iad.1: 3 missing here",
        "  no difference for fra.2, sin.1",
    ]
    assert max(map(len, said)) <= 80


def test_state_hashes_are_told_partition_by_partition() -> None:
    same = {"fra": {0: ("aa", 3), 1: ("bb", 4)}, "iad": {0: ("aa", 3), 1: ("bb", 4)}}
    assert hash_lines(same) == ["state hashes: equal in 2 partitions of fra, iad"]
    differ = {**same, "iad": {0: ("aa", 3), 1: ("cc", 5)}}
    assert hash_lines(differ) == [
        "state hashes: equal in 1 of 2 partitions",
        "  partition 1: fra bb (4 rows), iad cc (5 rows)",
    ]
    document = hashes_document(differ)
    assert document["equal"] == {"0": True, "1": False}
    assert document["idcs"]["iad"]["1"] == {"hash": "cc", "rows": 5}


def test_one_idc_alone_is_equal_to_nobody() -> None:
    alone = {"fra": {0: ("aa", 3)}}
    assert hashes_document(alone)["equal"] == {"0": False}
    assert "nothing to compare" in hash_lines(alone)[0]


def test_seals_come_from_the_status_and_an_older_node_tells_none() -> None:
    status: dict[str, Any] = {
        "origin": "fra.2", "serving": True, "sessions": 0, "rates": {"accepted_per_s": 0},
        "log": {"ends": [1]}, "held": {}, "applied": {}, "peers_held": {}, "peers_applied": {},
        "lag": {},
    }  # fmt: skip
    assert facts_from_status(status, 0).seals == {}
    more = status | {"seals": {"fra.1": [3, 4]}, "published_again": {"fra.1": 2}}
    found = facts_from_status(more, 0)
    assert (found.seals, found.published_again) == ({"fra.1": (3, 4)}, {"fra.1": 2})


def test_a_return_and_its_steps_keep_it_as_evidence_and_other_moves_do_not() -> None:
    decision = Decision(None, "refused")
    for kind in (Kind.FAILBACK, Kind.RAMP):
        kept = summary(Change(kind, "fra", "r", "operator"), decision, evidence(), 0)
        assert kept["divergence"] == as_document(compare(evidence(), "fra", IDCS))
    drained = summary(Change(Kind.DRAIN, "fra", "r", "operator"), decision, evidence(), 0)
    assert "divergence" not in drained
