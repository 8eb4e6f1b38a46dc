"""ipconf answers whatever its OpenAPI document allows, and whatever it does not, as the document
says: requests are made from it by schemathesis, which holds the answers against it."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig

from services.node.testing_ipconf import IpconfSite

DOCUMENT = Path(__file__).parents[2] / "docs" / "ipconf.openapi.json"
# A parameter that ipconf does not know may be a newer client's: it is left aside, not refused.
CONFIG = SchemathesisConfig.from_dict({"generation": {"allow-extra-parameters": False}})
SCHEMA = schemathesis.openapi.from_dict(json.loads(DOCUMENT.read_text()), config=CONFIG)
EXAMPLES = 100


@pytest.fixture
def api(tmp_path: Path, pki_dir: Path) -> Iterator[IpconfSite]:
    """On a loop of its own: requests are sent from the test's thread, which waits for answers."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    found = IpconfSite(tmp_path, pki_dir)

    async def start() -> None:
        await found.start()
        await found.holder.offer(found.policy())

    try:
        asyncio.run_coroutine_threadsafe(start(), loop).result(10)
        yield found
        asyncio.run_coroutine_threadsafe(found.stop(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("path", "method"), [("/v1/gateways", "GET"), ("/v1/reports", "POST")])
def test_every_answer_is_one_of_the_document(
    api: IpconfSite, path: str, method: str, mode: GenerationMode
) -> None:
    seen: set[int] = set()
    known = {"Authorization": f"Bearer {api.token(admin=True)}"}
    ca = str(api.pki_dir / "ca.pem")

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=SCHEMA[path][method].as_strategy(mode))
    def ask(case: schemathesis.Case[Any]) -> None:
        # Some checks ask again, for example without the token: in the same way.
        answer = case.call_and_validate(
            base_url=api.url, session=session, headers=known, verify=ca, timeout=5.0
        )
        seen.add(answer.status_code)

    with requests.Session() as session:
        ask()
    good = 200 if method == "GET" else 204
    assert good in seen if mode is GenerationMode.POSITIVE else 400 in seen, seen
