"""What a soak calls flat."""

from __future__ import annotations

import os

import pytest

from tools.soak import GROWTH_MIB, anonymous_mib, growth, page


def test_a_process_that_fills_its_caches_and_stays_there_is_flat():
    points = [(5.0 * n, min(120.0, 60.0 + 10 * n) + (n % 3)) for n in range(240)]
    assert growth("fra", points).is_flat


def test_one_that_grows_slowly_and_for_ever_is_not():
    leak = [(5.0 * n, 100.0 + n * 0.2) for n in range(240)]  # 2.4 MiB a minute
    found = growth("fra", leak)
    assert not found.is_flat and found.after_mib - found.before_mib > GROWTH_MIB
    assert "grew" in page({"fra": leak}, [found], "fra grew") and "<svg" in page(
        {"fra": leak}, [found], "fra grew"
    )


def test_too_few_samples_say_nothing():
    with pytest.raises(ValueError, match="samples"):
        growth("fra", [(0.0, 1.0)] * 3)


def test_memory_is_what_a_process_has_written_itself():
    before = anonymous_mib(os.getpid())
    written = bytearray(os.urandom(1)) * (32 << 20)
    assert anonymous_mib(os.getpid()) - before == pytest.approx(32, abs=4)
    del written
