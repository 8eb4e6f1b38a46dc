"""The operator with a thousand objects: the benchmark's figures, and what is promised of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from benchmarks import reconcile
from imctl.testing.cluster import programs
from imctl.testing.cluster.cluster import running


@pytest.mark.nightly
async def test_a_thousand_objects_are_reconciled_to_their_children(
    cluster_programs: programs.Programs,
    tmp_path: Path,
    figures: Callable[[str, object], None],
) -> None:
    with running(cluster_programs, tmp_path) as cluster:
        found = await reconcile.thousand(cluster, tmp_path, 1_000, 200)
    for name, value in found.items():
        figures(f"operator with 1,000 objects, {name}", round(value, 2))
    assert found["event to status, p95"] < reconcile.AIM_S, found
