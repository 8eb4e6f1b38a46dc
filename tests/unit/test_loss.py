"""The estimated loss of a failover, from held, applied and announced vectors."""

from __future__ import annotations

from collections.abc import Mapping

from imctl.loss import Loss, Survivor, as_document, estimate
from services.control.evidence import Ends, Evidence, IdcFacts


def facts(
    name: str, held: Mapping[str, Ends], applied: Mapping[str, Ends], announced: Mapping[str, Ends]
) -> IdcFacts:
    return IdcFacts(0, f"{name}.1", held=held, applied=applied, announced=announced)


IAD = facts("iad", {"fra.1": (100, 50)}, {"fra.1": (98, 50)}, {"fra.1": (103, 51)})
SIN = facts("sin", {"fra.1": (90, 51)}, {"fra.1": (90, 40)}, {"fra.1": (101, 53)})


def test_what_no_survivor_holds_is_the_loss_and_what_one_holds_is_not() -> None:
    loss = estimate(Evidence({"iad": IAD, "sin": SIN}), "fra", ["iad", "sin"])
    assert loss.origin == "fra.1"
    assert loss.alone == (103 - 100) + (53 - 51)
    assert loss.survivors == (Survivor("iad", 3 + 3, 2), Survivor("sin", 13 + 2, 11))
    assert not loss.heard
    text = "\n".join(loss.lines())
    assert "5 records that no surviving IDC has are delayed until fra returns" in text
    assert "after its last report" in text


def test_an_idc_that_still_answers_says_itself_where_its_log_ends() -> None:
    own = IdcFacts(0, "fra.1", ends=(110, 53))
    loss = estimate(Evidence({"fra": own, "iad": IAD, "sin": SIN}), "fra", ["iad", "sin"])
    assert loss.heard
    assert loss.alone == (110 - 100) + (53 - 51)
    assert "after its last report" not in "\n".join(loss.lines())


def test_a_former_life_of_the_idc_is_not_counted() -> None:
    """Its seal has settled what of it counts."""
    held = {"fra.9": (900,), "fra.10": (7,), "sin.1": (5,)}
    iad = facts("iad", held, held, {"fra.9": (950,), "fra.10": (9,), "sin.1": (50,)})
    loss = estimate(Evidence({"iad": iad}), "fra", ["iad", "sin"])
    assert (loss.origin, loss.alone) == ("fra.10", 2)
    assert [one.idc for one in loss.survivors] == ["iad"]  # sin does not answer


def test_whatever_is_held_by_an_idc_that_is_no_survivor_does_not_count() -> None:
    loss = estimate(Evidence({"iad": IAD, "sin": SIN}), "fra", ["sin"])
    assert loss.alone == 101 - 90 + 53 - 51


def test_without_a_survivor_that_answers_it_is_unknown_and_never_none() -> None:
    for evidence in (Evidence(), Evidence({"sin": facts("sin", {}, {}, {})})):
        loss = estimate(evidence, "fra", ["iad", "sin"])
        assert loss == Loss("fra", None, (), False)
        assert "unknown" in loss.lines()[0]
        assert as_document(loss)["records_delayed"] is None
