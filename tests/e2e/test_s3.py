"""Files in buckets under whole IDCs: the S3 server, and then an IDC, is killed in the middle of an
upload, which comes to its end all the same, and is had in another IDC."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from imctl.testing import s3
from imctl.testing.lab import until
from tests.e2e.test_features import at_home, client

pytestmark = pytest.mark.e2e

IDCS = ("fra", "iad", "sin")


async def test_an_upload_outlives_its_bucket_and_its_idc(
    stage, s3_program, pki_dir, tmp_path
) -> None:
    credentials = tmp_path / "credentials"
    credentials.write_text(
        f"[default]\naws_access_key_id = {s3.CREDENTIALS.access_key}\n"
        f"aws_secret_access_key = {s3.CREDENTIALS.secret_key}\n"
    )
    data = bytes(range(256)) * 12_000
    with ExitStack() as stack:
        servers = {
            idc: stack.enter_context(s3.running(s3_program, tmp_path / f"s3-{idc}", pki_dir))
            for idc in IDCS
        }

        def with_buckets(spec: dict[str, Any]) -> None:
            spec["media"] = {"user_bytes_per_s": 400_000}  # of which 4 MB at once
            for idc in spec["idcs"]:
                idc["engines"] = {
                    "blobs": {
                        "s3": {
                            "endpoint": f"https://{servers[idc['name']].address}",
                            "bucket": s3.BUCKET,
                            "region": s3.REGION,
                            "credentials_file": str(credentials),
                            "ca_file": str(pki_dir / "ca.pem"),
                        }
                    }
                }

        reached = {name: asyncio.Event() for name in ("a third", "two thirds")}

        def sent(done: int, size: int) -> None:
            if 3 * done > size:
                reached["a third"].set()
            if 3 * done > 2 * size:
                reached["two thirds"].set()

        async with (
            stage(with_buckets) as (lab, cast),
            client(lab, cast, "s3-ann", "phone", "fra") as ann,
            client(lab, cast, "s3-bob", "phone", "iad") as bob,
        ):
            await at_home(ann, "fra")
            await at_home(bob, "iad")
            small = await ann.upload(b"small", "a/b", "x")
            uploading = asyncio.create_task(ann.upload(data, "a/b", "x", progress=sent))
            await reached["a third"].wait()
            await asyncio.to_thread(servers["fra"].kill)
            await lab.wait_alarm("fra", "files cannot be looked at now: fra's S3 at", 60)
            await asyncio.to_thread(servers["fra"].start)
            await lab.wait_calm("fra")
            await reached["two thirds"].wait()
            await lab.kill("fra")
            await lab.start("fra")
            ref = await uploading

            async def fetched(path: Path) -> bool:
                await bob.download(ref, path)
                return await asyncio.to_thread(path.read_bytes) == data

            await until(lambda: fetched(tmp_path / "got"), 60, "the file is not had in iad")
            await bob.download(small, tmp_path / "small")
            assert (tmp_path / "small").read_bytes() == b"small"
            folder = lab.data(ref.named.idc) / "media"
            assert not folder.exists()  # nothing of it is on the IDC's own disk
