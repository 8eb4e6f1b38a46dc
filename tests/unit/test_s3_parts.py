"""What the S3 engine reckons without a server: signatures, keys and bytes of chunks, answers."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from imcore.errors import DiskFull, NotTrusted, Overloaded, Unavailable
from services.engines.s3 import answers, layout
from services.engines.s3.answers import Fault, Listed, Page, Who
from services.engines.s3.layout import Of, Span
from services.engines.s3.signing import EMPTY_SHA256, Credentials, Query, signed

# AWS, "Signature calculations for the Authorization header", in a single chunk.
EXAMPLE = Credentials("AKIAIOSFODNN7EXAMPLE", "wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY")
HOST = "examplebucket.s3.amazonaws.com"
AT_MS = int(datetime(2013, 5, 24, tzinfo=UTC).timestamp()) * 1000


@pytest.mark.parametrize(
    ("method", "path", "query", "headers", "body", "signature"),
    [
        (
            "GET", "/test.txt", [], {"Range": "bytes=0-9"}, b"",
            "f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41",
        ),
        (
            "PUT", "/test$file.text", [],
            {"Date": "Fri, 24 May 2013 00:00:00 GMT", "x-amz-storage-class": "REDUCED_REDUNDANCY"},
            b"Welcome to Amazon S3.",
            "98ad721746da40c64f1a55b78f14c238d841ea1380cd77a1b5971af0ece108bd",
        ),
        (
            "GET", "/", [("lifecycle", "")], {}, b"",
            "fea454ca298b7da1c68078a5d1bdbfbbe0d65c699e0f91ac7a200a0136783543",
        ),
        (
            "GET", "/", [("prefix", "J"), ("max-keys", "2")], {}, b"",
            "34b48302e7b5fa45bde8084f4b7868a86f0a534bc59db6670ed5711ef69dc6f7",
        ),
    ],
)  # fmt: skip
def test_signatures_are_those_of_the_published_examples(
    method: str, path: str, query: Query, headers: dict[str, str], body: bytes, signature: str
) -> None:
    sha256 = hashlib.sha256(body).hexdigest()
    found = signed(method, HOST, path, query, headers, sha256, EXAMPLE, "us-east-1", AT_MS)
    assert found["Authorization"].endswith(f"Signature={signature}")
    assert "wJalr" not in str(found)


def test_the_token_of_credentials_that_end_is_sent_and_signed() -> None:
    found = signed(
        "GET", HOST, "/", (), {}, EMPTY_SHA256, replace(EXAMPLE, token="t"), "us-east-1", AT_MS
    )
    assert found["X-Amz-Security-Token"] == "t"
    assert "x-amz-security-token" in found["Authorization"]


SPANS = st.lists(
    st.builds(lambda at, size: Span(at, at + size), st.integers(0, 30), st.integers(0, 9))
)


@given(SPANS)
def test_pieces_are_the_bytes_from_0_on_up_to_the_first_gap(spans: list[Span]) -> None:
    there = {at for span in spans for at in range(*span)}
    reach = next(at for at in range(100) if at not in there)
    read = [
        at
        for piece in layout.pieces(spans)
        for at in range(
            piece.span.start + piece.skipped, piece.span.start + piece.skipped + piece.size
        )
    ]
    assert read == list(range(reach))
    assert all(piece.size and piece.span in spans for piece in layout.pieces(spans))
    assert layout.reach(spans) == reach


def test_keys_say_what_they_are_of_and_others_are_not_ours() -> None:
    span = Span(1 << 20, (1 << 20) + 300)
    assert layout.of_upload(layout.chunk_key("u-1", "ab", span)) == Of("u-1", "ab", span)
    assert layout.of_upload(layout.note_key("u-1", "ab")) == Of("u-1", "ab", None)
    assert layout.chunk_key("u", "ab", span) < layout.note_key("u", "ab")
    sha256 = "0" * 64
    assert layout.file_of(layout.file_key(sha256)) == sha256
    assert layout.note_of(layout.notes_prefix(sha256) + "key.a") == (sha256, "key.a")
    for key in ("uploads/u/x", "uploads/u/ab/1-2", "files/12", "files/x/", "notes/12/a", ""):
        assert layout.of_upload(key) is None and layout.file_of(key) is None
        assert layout.note_of(key) is None


def test_chunks_sort_by_where_they_begin() -> None:
    keys = [layout.chunk_key("u", "a", Span(at, at + 5)) for at in (0, 9, 10, 99, 1 << 40)]
    assert keys == sorted(keys)


XML = b"""<?xml version="1.0" encoding="UTF-8"?>
<ListBucketResult xmlns="http://s3.amazonaws.com/doc/2006-03-01/"><Name>b</Name>
<IsTruncated>%s</IsTruncated><Contents><Key>p/a &amp; b</Key><Size>7</Size></Contents>%s
</ListBucketResult>"""


def test_lists_are_read_page_by_page() -> None:
    token = b"<NextContinuationToken>t1</NextContinuationToken>"
    rows = [Listed("p/a & b", 7)]
    assert answers.page_of(XML % (b"true", token)) == Page(rows, "t1")
    assert answers.page_of(XML % (b"false", token)) == Page(rows, "")
    for body in (XML % (b"true", b""), b"", b"<html>", b"<a><Contents/></a>"):
        with pytest.raises(ValueError, match="list"):
            answers.page_of(body)


@pytest.mark.parametrize(
    ("status", "code", "error", "again"),
    [
        (403, "SignatureDoesNotMatch", NotTrusted, False),
        (403, "", NotTrusted, False),
        (400, "AuthorizationHeaderMalformed", NotTrusted, False),
        (301, "PermanentRedirect", NotTrusted, False),
        (503, "SlowDown", Overloaded, True),
        (429, "", Overloaded, True),
        (500, "InternalError", Unavailable, True),
        (502, "", Unavailable, True),
        (507, "", DiskFull, False),
        (507, "InsufficientStorage", DiskFull, False),
        (500, "XMinioStorageFull", DiskFull, False),
        (403, "QuotaExceeded", DiskFull, False),
        (400, "InvalidArgument", Unavailable, False),
    ],
)
def test_faults_are_what_the_caller_can_do_about_them(
    status: int, code: str, error: type[Unavailable], again: bool
) -> None:
    body = f"<Error><Code>{code}</Code><Message>m</Message></Error>".encode()
    fault = answers.fault_of(status, body)
    assert fault == Fault(status, code, "m")
    assert answers.passing(fault) is again
    found = answers.error_of(fault, Who("fra's S3 at h:1", "the file store of fra"))
    assert type(found) is error
    assert found.told.startswith("the file store of fra ")
    assert not any(part in found.told for part in ("h:1", "S3", str(status), code or "S3"))
    assert str(found).startswith("fra's S3 at h:1 ") and f"{status}" in str(found)


def test_what_a_proxy_says_is_a_fault_too() -> None:
    assert answers.fault_of(502, b"<html><br>Bad Gateway") == Fault(502, "", "")
