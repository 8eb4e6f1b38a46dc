"""A test that failed is tried once more where that was asked for: ``pytest --max-suite-reruns 3``
(pytest-rerunfailures), as CI does. Without the option, none is.

A machine that others use too can miss a limit of time without anything being wrong, and among
thousands of tests on real processes one such miss would fail most runs. What the history of clients
says is judged once, though: where it shows a message lost, doubled, reordered or altered, the test
fails, and so does one that left something open behind. What only computes has no limits of time,
and is not tried again either. The run says at its end which tests it tried twice, and why.
"""

from __future__ import annotations

import pytest

from imctl.testing.broken import PromiseBroken
from tests.lanes import COMPUTE

FINAL = [PromiseBroken.__name__, "ResourceWarning", "PytestUnraisableExceptionWarning"]


def pytest_itemcollected(item: pytest.Item) -> None:
    if item.config.getoption("max_suite_reruns", None) and not item.nodeid.startswith(COMPUTE):
        item.add_marker(pytest.mark.flaky(reruns=1, rerun_except=FINAL))
