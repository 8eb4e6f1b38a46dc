"""How a file that was uploaded is named, for both ends (docs/media.md)."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple

from imcore.errors import Code, Refused
from imcore.proto import client_pb2 as pb

CHUNK_BYTES_MAX = 1 << 20  # of one request of an upload
NAME_CHARS_MAX = 200
KEY_BYTES = 16
SECRET_BYTES = 32
TYPE = re.compile(r"[a-z]+/[A-Za-z0-9.+-]{1,60}")
_STICKER = re.compile(r"[a-z0-9_.-]{1,64}")
_IDC = re.compile(r"[a-z][a-z0-9-]{0,30}")
_HEX = re.compile(r"[0-9a-f]+")


class MediaName(NamedTuple):
    """``idc``: where it was uploaded; ``sha256`` of its bytes and ``key``, in hex. Nobody can guess
    the key: whoever names it may have the file."""

    idc: str
    sha256: str
    key: str


class MediaRef(NamedTuple):
    """What a message says of a file. ``type`` is the uploader's word, such as image/png; ``label``
    a name for people; ``width`` and ``height`` of a picture in pixels, 0: not known. ``secret``:
    the key of a file that is encrypted; ``sha256`` is of its ciphertext then, ``size`` and ``type``
    of what is in it."""

    named: MediaName
    size: int
    type: str
    label: str = ""
    width: int = 0
    height: int = 0
    secret: bytes = b""


def is_sha256(text: str) -> bool:
    return len(text) == 64 and _HEX.fullmatch(text) is not None


def is_key(text: str) -> bool:
    return len(text) == 2 * KEY_BYTES and _HEX.fullmatch(text) is not None


def is_sticker(code: str) -> bool:
    return _STICKER.fullmatch(code) is not None


def media_pb(ref: MediaRef) -> pb.MediaRef:
    """Raises ValueError for what is no reference."""
    message = pb.MediaRef(
        idc=ref.named.idc,
        sha256=bytes.fromhex(ref.named.sha256),
        key=bytes.fromhex(ref.named.key),
        size=ref.size,
        type=ref.type,
        name=ref.label,
        width=ref.width,
        height=ref.height,
        secret=ref.secret,
    )
    if problem := media_problem(message):
        raise ValueError(problem)
    return message


def media_of(message: pb.MediaRef) -> MediaRef:
    named = MediaName(message.idc, message.sha256.hex(), message.key.hex())
    return MediaRef(
        named, message.size, message.type, message.name, message.width, message.height,
        message.secret,
    )  # fmt: skip


def media_problem(message: pb.MediaRef) -> str:
    """Why this is no reference to a file, in one sentence; empty: it is. Whether there is such a
    file is not asked."""
    named = _IDC.fullmatch(message.idc) and len(message.sha256) == 32
    if not named or len(message.key) != KEY_BYTES:
        return "a file is named by its IDC, its SHA-256 and its key"
    if TYPE.fullmatch(message.type) is None or len(message.name) > NAME_CHARS_MAX:
        return f"a file has a type and a name of at most {NAME_CHARS_MAX} characters"
    if len(message.secret) not in (0, SECRET_BYTES):
        return f"an encrypted file has a key of {SECRET_BYTES} bytes"
    return ""


def ref_json(ref: MediaRef) -> dict[str, Any]:
    """As the HTTP API tells it; without label and secret, which only the message has."""
    return {
        **ref.named._asdict(),
        "size": ref.size,
        "type": ref.type,
        "width": ref.width,
        "height": ref.height,
    }


def ref_of(document: Mapping[str, Any], label: str = "") -> MediaRef:
    """Raises ValueError, KeyError or TypeError for what ``ref_json`` did not make."""
    named = MediaName(str(document["idc"]), str(document["sha256"]), str(document["key"]))
    ref = MediaRef(
        named, int(document["size"]), str(document["type"]), label, int(document["width"]),
        int(document["height"]),
    )  # fmt: skip
    media_pb(ref)
    return ref


class Declared(NamedTuple):
    """What an uploader says of its file before it sends it."""

    sha256: str
    size: int
    type: str


def declared_of(document: Any) -> Declared:
    """Raises Refused."""
    expected = 'expected {"sha256": 64 hex digits, "size": bytes, "type": such as "image/png"}'
    if not isinstance(document, dict) or set(document) != set(Declared._fields):
        raise Refused(Code.BAD_REQUEST, expected)
    found = Declared(**document)
    if not (
        isinstance(found.sha256, str)
        and is_sha256(found.sha256)
        and type(found.size) is int
        and found.size >= 0
        and isinstance(found.type, str)
        and TYPE.fullmatch(found.type)
    ):
        raise Refused(Code.BAD_REQUEST, expected)
    return found
