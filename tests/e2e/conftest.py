"""Fixtures of the tests that start whole deployments."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from imctl.target.local import Local
from imctl.testing.cast import Cast
from imctl.testing.lab import Edit, Lab

Stage = Callable[..., AbstractAsyncContextManager[tuple[Lab, Cast]]]


@pytest.fixture
def stage(tmp_path: Path, request: pytest.FixtureRequest) -> Stage:
    """``async with stage(edit=...) as (lab, cast)``: three IDCs that serve, and recorded clients.
    When the test fails, the logs' last lines are printed."""

    @asynccontextmanager
    async def staged(
        edit: Edit | None = None, before_start: Callable[[Local], Any] = lambda target: None
    ) -> AsyncIterator[tuple[Lab, Cast]]:
        async with Lab.up(tmp_path, edit, before_start) as lab:
            try:
                async with Cast(lab, tmp_path) as cast:
                    yield lab, cast
            except BaseException:
                for idc in lab.idcs:
                    print(f"--- {idc}: {lab.target.log_file(idc)}")
                    print("\n".join(lab.log(idc).splitlines()[-25:]))
                raise

    return staged
