"""The one form of errors of the HTTPS APIs."""

from __future__ import annotations

import json

import pytest

from imcore.errors import Code
from services.https import answer_error


@pytest.mark.parametrize("code", Code)
def test_every_error_has_a_status(code: Code) -> None:
    answer = answer_error(code, "why", 5)
    assert 400 <= answer.status < 600
    assert isinstance(answer.body, bytes)
    error = {"code": code, "message": "why", "retry_after_ms": 5}
    assert json.loads(answer.body) == {"error": error}
