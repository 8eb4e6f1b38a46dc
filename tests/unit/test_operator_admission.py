"""The webhook: what it takes and refuses, in the words of `imctl validate`, over TLS."""

from __future__ import annotations

import shutil
import ssl
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from imcore import pki
from imcore.errors import BadInput
from imctl.reconcile.admission import PATH, answer, serving
from imctl.reconcile.decide import judge_region
from imctl.target.places import free_port
from tests.unit.test_operator_objects import REGIONS

REGION: dict[str, Any] = yaml.safe_load((REGIONS / "two-idc.yaml").read_text())
CLAIMED = {"name": "twice", "match": {"countries": ["DE"]}, "weights": {"dub": 1}}


def spec(**changes: Any) -> dict[str, Any]:
    found: dict[str, Any] = REGION["spec"] | changes
    return found


def wrong() -> dict[str, Any]:
    """What no rule of the CRD says: a country that two shards claim."""
    geo = REGION["spec"]["geo"]
    return spec(geo=geo | {"shards": [*geo["shards"], CLAIMED, CLAIMED | {"name": "thrice"}]})


def review(new: Any, old: Any = None, kind: str = "Region", **metadata: str) -> dict[str, Any]:
    def document(spec: Any) -> Any:
        return None if spec is None else REGION | {
            "metadata": {"name": "two-idc", **metadata}, "spec": spec,
        }  # fmt: skip

    request = {
        "uid": "0a1b", "kind": {"kind": kind}, "object": document(new), "oldObject": document(old),
    }  # fmt: skip
    return {
        "apiVersion": "admission.k8s.io/v1", "kind": "AdmissionReview", "request": request,
    }  # fmt: skip


def test_what_is_wrong_is_refused_with_all_that_validate_says() -> None:
    _, problems = judge_region("two-idc", wrong())
    assert problems
    said = answer(review(wrong(), spec()))
    assert said["response"] == {
        "uid": "0a1b", "allowed": False,
        "status": {"code": 422, "message": "; ".join(problems)},
    }  # fmt: skip


@pytest.mark.parametrize(
    "asked",
    [
        review(spec()),
        review(spec(), spec()),
        review(wrong(), wrong()),  # a label of one that was wrong already
        review(wrong(), spec(), deletionTimestamp="2026-01-01T00:00:00Z"),
        review(None, spec()),
        review({"idc": "fra"}, kind="IDC"),
    ],
)
def test_what_is_right_or_was_so_before_is_taken(asked: dict[str, Any]) -> None:
    assert answer(asked)["response"] == {"uid": "0a1b", "allowed": True}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pki.init(tmp_path, {"fra": ("localhost",)}, datetime.now(UTC))
    shutil.copy(tmp_path / "fra.pem", tmp_path / "tls.crt")
    shutil.copy(tmp_path / "fra.key", tmp_path / "tls.key")
    return tmp_path


async def test_it_answers_over_tls(folder: Path) -> None:
    port = free_port()
    trust = ssl.create_default_context(cafile=folder / "ca.pem")
    url = f"https://localhost:{port}{PATH}"
    async with serving("127.0.0.1", port, folder), aiohttp.ClientSession() as session:
        async with session.post(url, json=review(wrong()), ssl=trust) as reply:
            assert (await reply.json())["response"]["allowed"] is False
        nonsenses: tuple[Any, ...] = ({}, [], {"request": 1})
        for nonsense in nonsenses:
            async with session.post(url, json=nonsense, ssl=trust) as reply:
                assert reply.status == 400
        async with session.post(url, data=b"x", ssl=trust) as reply:
            assert reply.status == 400


async def test_without_a_certificate_or_a_port_it_says_so(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"expected tls\.crt and tls\.key"):
        async with serving("127.0.0.1", 0, tmp_path / "nothing"):
            raise AssertionError
    port = free_port()
    async with serving("127.0.0.1", port, folder):
        with pytest.raises(BadInput, match="expected a free address"):
            async with serving("127.0.0.1", port, folder):
                raise AssertionError
