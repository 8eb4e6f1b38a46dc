"""ipconf answers whatever its OpenAPI document allows, and whatever it does not, as the document
says: requests are made from it by schemathesis, which holds the answers against it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from schemathesis import GenerationMode

from services.node.testing_ipconf import IpconfSite
from tests.integration.conforming import schema_of, served, statuses

SCHEMA = schema_of(Path(__file__).parents[2] / "docs" / "ipconf.openapi.json")
EXAMPLES = 100


@pytest.fixture
def api(tmp_path: Path, pki_dir: Path) -> Iterator[IpconfSite]:
    found = IpconfSite(tmp_path, pki_dir)

    async def start() -> None:
        await found.start()
        await found.holder.offer(found.policy())

    with served(start, found.stop):
        yield found


@pytest.mark.parametrize("mode", list(GenerationMode))
@pytest.mark.parametrize(("path", "method"), [("/v1/gateways", "GET"), ("/v1/reports", "POST")])
def test_every_answer_is_one_of_the_document(
    api: IpconfSite, path: str, method: str, mode: GenerationMode
) -> None:
    token, ca = api.token(admin=True), api.pki_dir / "ca.pem"
    seen = statuses(SCHEMA[path][method], mode, EXAMPLES, api.url, ca, token)
    good = 200 if method == "GET" else 204
    assert good in seen if mode is GenerationMode.POSITIVE else 400 in seen, seen
