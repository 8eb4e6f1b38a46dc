"""What can be scaled, and the region file that a scale makes."""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml

from imcore.errors import BadInput
from imcore.region.load import check_text
from imctl.plan.diff import differences
from imctl.plan.scale import FIELDS, ONE_PROCESS, counts_of, scaled
from imctl.plan.takes import Takes, changes

THREE = (Path(__file__).parents[2] / "regions" / "three-idc.yaml").read_text()


def test_counts_are_by_role() -> None:
    assert counts_of(["gateway=3", "ipconf=2"]) == {"gateway": 3, "ipconf": 2}


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["im=3"], "share the IDC's one process"),
        (["kafka=3"], "a role that can be scaled"),
        (["gateway"], "expected gateway=COUNT"),
        (["gateway=-1"], "expected gateway=COUNT"),
        (["gateway=two"], "expected gateway=COUNT"),
        (["gateway=2", "gateway=3"], "twice"),
    ],
)
def test_what_cannot_be_scaled_is_said(words: list[str], why: str) -> None:
    with pytest.raises(BadInput, match=why):
        counts_of(words)


def test_no_role_is_both_scaled_and_not() -> None:
    assert not set(FIELDS) & set(ONE_PROCESS)


def test_a_scale_differs_in_the_one_field_and_takes_a_restart_of_its_idc() -> None:
    document = yaml.safe_load(THREE)
    text = yaml.safe_dump(scaled(document, "iad", {"gateway": 3}))
    assert document == yaml.safe_load(THREE)
    before, after = check_text(THREE, "a").region, check_text(text, "b").region
    assert before is not None and after is not None
    (change,) = changes(differences(before, after), before)
    assert change.difference.field == "spec.idcs[iad].gateways"
    assert (change.takes, change.units) == (Takes.RESTART, ("iad",))


def test_an_idc_that_is_not_there_is_refused() -> None:
    with pytest.raises(BadInput, match="expected one of fra, iad, sin, got 'mars'"):
        scaled(yaml.safe_load(THREE), "mars", {"gateway": 3})
