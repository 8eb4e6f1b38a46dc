"""The admin API answers whatever its OpenAPI document allows, and whatever it does not, as the
document says; and the document is that of the code."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from schemathesis import GenerationMode

from services.adminapi.openapi import text
from services.adminapi.routes import ROUTES
from services.node.testing_admin import AdminSite
from tests.integration.conforming import schema_of, served, statuses

DOCUMENT = Path(__file__).parents[2] / "docs" / "admin-api.openapi.json"
SCHEMA = schema_of(DOCUMENT)
EXAMPLES = 6


def test_the_document_is_what_the_code_says() -> None:
    assert DOCUMENT.read_text() == text(), "run `make docs`"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, pki_dir: Path) -> Iterator[AdminSite]:
    found = AdminSite(tmp_path_factory.mktemp("site"), pki_dir)
    with served(found.start, found.stop):
        yield found


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize("route", ROUTES, ids=lambda route: route.verb)
def test_every_answer_is_one_of_the_document(
    site: AdminSite, route: Any, mode: GenerationMode
) -> None:
    operation = SCHEMA[route.path][route.method]
    ca = site.pki_dir / "ca.pem"
    seen = statuses(operation, mode, EXAMPLES, site.url, ca, site.token())
    if mode is GenerationMode.NEGATIVE:
        assert 400 in seen, seen
    else:
        assert seen & {200, 404}, seen
        assert 400 not in seen, seen
