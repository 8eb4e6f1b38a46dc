"""The admin API answers whatever its OpenAPI document allows, and whatever it does not, as the
document says; and the document is that of the code."""

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

from services.adminapi.openapi import text
from services.adminapi.routes import ROUTES
from services.node.testing_admin import AdminSite

DOCUMENT = Path(__file__).parents[2] / "docs" / "admin-api.openapi.json"
# A parameter that the API does not know may be a newer caller's: it is left aside, not refused.
CONFIG = SchemathesisConfig.from_dict({"generation": {"allow-extra-parameters": False}})
SCHEMA = schemathesis.openapi.from_dict(json.loads(DOCUMENT.read_text()), config=CONFIG)
EXAMPLES = 6


def test_the_document_is_what_the_code_says() -> None:
    assert DOCUMENT.read_text() == text(), "run `make docs`"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, pki_dir: Path) -> Iterator[AdminSite]:
    """On a loop of its own: requests are sent from the test's thread, which waits for answers."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    found = AdminSite(tmp_path_factory.mktemp("site"), pki_dir)
    try:
        asyncio.run_coroutine_threadsafe(found.start(), loop).result(10)
        yield found
        asyncio.run_coroutine_threadsafe(found.stop(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.verb)
def test_every_answer_is_one_of_the_document(
    site: AdminSite, route: Any, mode: GenerationMode
) -> None:
    seen: set[int] = set()
    known = {"Authorization": f"Bearer {site.token()}"}
    ca = str(site.pki_dir / "ca.pem")

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=SCHEMA[route.path][route.method].as_strategy(mode))
    def ask(case: schemathesis.Case[Any]) -> None:
        answer = case.call_and_validate(
            base_url=site.url, session=session, headers=known, verify=ca, timeout=5.0
        )
        seen.add(answer.status_code)

    with requests.Session() as session:
        ask()
    if mode is GenerationMode.NEGATIVE:
        assert 400 in seen, seen
    else:
        assert seen & {200, 404}, seen
        assert 400 not in seen, seen
