"""Twenty minutes of chat: nothing leaks (`make nightly`)."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.soak import soak


@pytest.mark.nightly
@pytest.mark.e2e
async def test_no_process_grows_in_twenty_minutes(tmp_path: Path, figures) -> None:
    found, status = await soak(20.0, 50.0, tmp_path)
    for each in found:
        figures(f"soak: {each.process}, MiB", f"{each.before_mib:.1f}, then {each.after_mib:.1f}")
    assert status == 0
    assert [each.process for each in found if not each.is_flat] == []
