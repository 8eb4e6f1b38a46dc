"""An HTTPS API held against its OpenAPI document: schemathesis makes the requests from it, good
ones and ones that break it in one place, and judges the answers."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from schemathesis import GenerationMode
from schemathesis.config import SchemathesisConfig

# A parameter that the API does not know may be a newer caller's: it is left aside, not refused.
_CONFIG = SchemathesisConfig.from_dict({"generation": {"allow-extra-parameters": False}})


def schema_of(document: Path) -> Any:
    return schemathesis.openapi.from_dict(json.loads(document.read_text()), config=_CONFIG)


Work = Callable[[], Awaitable[None]]


@contextmanager
def served(start: Work, stop: Work) -> Iterator[None]:
    """On a loop of its own: requests are sent from the test's thread, which waits for answers."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    def done(work: Work) -> None:
        async def whole() -> None:
            await work()

        asyncio.run_coroutine_threadsafe(whole(), loop).result(10)

    try:
        done(start)
        yield
        done(stop)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def statuses(
    operation: Any, mode: GenerationMode, examples: int, url: str, ca: Path, token: str
) -> set[int]:
    """With which it answered; fails for an answer that is none of the document."""
    seen: set[int] = set()

    @settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(mode))
    def ask(case: schemathesis.Case[Any]) -> None:
        # Some checks ask again, for example without the token: in the same way.
        answer = case.call_and_validate(
            base_url=url, session=session, headers={"Authorization": f"Bearer {token}"},
            verify=str(ca), timeout=5.0,
        )  # fmt: skip
        seen.add(answer.status_code)

    with requests.Session() as session:
        ask()
    return seen
