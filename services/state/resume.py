"""Resume tokens: self-contained and signed region-wide, so that any IDC can honour one without
asking the IDC that gave it out; no session state crosses the WAN."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import Annotated

from pydantic import Field, StringConstraints, TypeAdapter

from imcore.attest import RegionKeys

PURPOSE = b"resume"
_SIGNATURE_BYTES = 20


Partition = Annotated[str, StringConstraints(pattern=r"^[0-9]{1,9}$")]
Lsn = Annotated[int, Field(ge=0, lt=1 << 64)]


@dataclass(frozen=True, slots=True)
class Resume:
    session: str
    uid: str
    device: str
    connection_epoch: int
    expires_ms: int
    idc: str
    incarnation: Annotated[int, Field(ge=0, lt=1 << 32)]
    lsns: dict[Partition, Lsn] = field(default_factory=dict)  # partition -> last op accepted there


_RESUME = TypeAdapter(Resume)


def seal(keys: RegionKeys, resume: Resume) -> bytes:
    body = json.dumps(asdict(resume), separators=(",", ":")).encode()
    return keys.sign(body, PURPOSE) + body


def open_token(keys: RegionKeys, token: bytes, now_ms: int) -> Resume | None:
    """None when it is not one of this region's, or has expired: then the client just connects."""
    signature, body = token[:_SIGNATURE_BYTES], token[_SIGNATURE_BYTES:]
    if not keys.check(body, signature, PURPOSE):
        return None
    try:
        resume = _RESUME.validate_json(body, strict=True)
    except ValueError:
        return None
    return resume if resume.expires_ms > now_ms else None
