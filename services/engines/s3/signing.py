"""Signature version 4 of a request to S3. Pure: the caller says what time it is.

Written out, and not taken from a library: botocore, on which all of them build, is 32 MB that would
have to be in every image, and cannot be installed beside kubernetes-asyncio (each wants another
python-dateutil). It is held to AWS's published examples, and to a real server's own reckoning.
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote

ALGORITHM = "AWS4-HMAC-SHA256"
EMPTY_SHA256 = hashlib.sha256(b"").hexdigest()
Query = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Credentials:
    """``token``: of credentials that end by themselves; empty for a user's own."""

    access_key: str
    secret_key: str = field(repr=False)
    token: str = field(default="", repr=False)


def encoded_path(path: str) -> str:
    """As it is signed and as it is sent: each byte but letters, digits, "-._~" and "/"."""
    return quote(path, safe="/-._~")


def encoded_query(query: Query) -> str:
    pairs = sorted((quote(name, safe="-._~"), quote(value, safe="-._~")) for name, value in query)
    return "&".join(f"{name}={value}" for name, value in pairs)


def signed(
    method: str,
    host: str,
    path: str,
    query: Query,
    headers: Mapping[str, str],
    sha256: str,
    credentials: Credentials,
    region: str,
    wall_ms: int,
) -> dict[str, str]:
    """The headers, with those that sign the request. ``path``: not encoded. ``sha256``: of the
    body, which the server compares. Every header that is given is signed."""
    moment = datetime.fromtimestamp(wall_ms / 1000, UTC).strftime("%Y%m%dT%H%M%SZ")
    found = dict(headers)
    found |= {"Host": host, "X-Amz-Content-Sha256": sha256, "X-Amz-Date": moment}
    if credentials.token:
        found["X-Amz-Security-Token"] = credentials.token
    lines = sorted((name.lower(), " ".join(value.split())) for name, value in found.items())
    names = ";".join(name for name, _ in lines)
    request = [
        method,
        encoded_path(path),
        encoded_query(query),
        *(f"{name}:{value}" for name, value in lines),
        "",
        names,
        sha256,
    ]
    scope = f"{moment[:8]}/{region}/s3/aws4_request"
    hashed = hashlib.sha256("\n".join(request).encode()).hexdigest()
    text = f"{ALGORITHM}\n{moment}\n{scope}\n{hashed}"
    key = b"AWS4" + credentials.secret_key.encode()
    for part in scope.split("/"):
        key = _mac(key, part)
    signature = _mac(key, text).hex()
    found["Authorization"] = (
        f"{ALGORITHM} Credential={credentials.access_key}/{scope}, "
        f"SignedHeaders={names}, Signature={signature}"
    )
    return found


def _mac(key: bytes, text: str) -> bytes:
    return hmac.digest(key, text.encode(), "sha256")
