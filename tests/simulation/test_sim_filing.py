"""What simulated clients upload and download is judged."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from imcore.media import MediaRef
from services.engines.blob_files import FileBlobs
from services.sdk.media import Transfers
from services.sim.filing import Filing
from services.sim.region import FRESH_FROM
from services.sim.run import run_seed

SEED = FRESH_FROM + 1
SECONDS = 8.0


@pytest.fixture(autouse=True)
def much(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Filing, "per_s", 5.0)


def test_all_files_come_and_nothing_is_found() -> None:
    outcome = run_seed(SEED, 2 * SECONDS)
    assert not outcome.violated
    assert all(outcome.doings[kind] for kind in Filing.kinds), outcome.doings


def test_an_upload_that_is_answered_and_gone_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    complete = FileBlobs.complete

    async def forgetful(self: FileBlobs, upload: str, sha256: str) -> bool:
        done = await complete(self, upload, sha256)
        await self.delete(sha256)
        return done

    monkeypatch.setattr(FileBlobs, "complete", forgetful)
    monkeypatch.setattr(Filing, "per_s", 1.0)  # each is waited for in the end
    violated = run_seed(SEED, SECONDS).violated
    assert violated and all(each.startswith("file: ") for each in violated)


def test_other_bytes_than_those_that_were_sent_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    download = Transfers.download

    async def other(self: Transfers, ref: MediaRef, path: Path, *rest: Any) -> None:
        await download(self, ref, path, *rest)
        path.write_bytes(b"other")  # noqa: ASYNC240

    monkeypatch.setattr(Transfers, "download", other)
    violated = run_seed(SEED, SECONDS).violated
    assert violated and all(each.endswith("is not what was uploaded") for each in violated)
