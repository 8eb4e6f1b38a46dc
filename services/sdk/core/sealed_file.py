"""A file as servers hold it that must not read it (docs/encryption.md).

AES-256-GCM for each chunk, in the STREAM construction (Hoang, Reyhanitabar, Rogaway and Vizár,
"Online Authenticated-Encryption and its Nonce-Reuse Misuse-Resistance", 2015): the nonce is the
chunk's number and whether it is the last one. So no chunk opens at another place, and a file that
is cut, or goes on after its end, has no last chunk where one is due. The key is of one file alone;
that is why nonces may begin at 0.

Of each chunk one ciphertext at most is given out, though a transfer reads it several times: two
contents under one nonce would tell what they differ in, and how to forge.

No I/O and no clock; the library draws random numbers.
"""

from __future__ import annotations

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from imcore.media import SECRET_BYTES
from services.sdk.errors import SdkError

CHUNK_BYTES = 64 * 1024  # sealed: transfers' chunks are a multiple of it
TAG_BYTES = 16
PLAIN_BYTES = CHUNK_BYTES - TAG_BYTES
_NUMBER_BYTES = 11


class BadChunk(ValueError):
    """It is not this chunk of this file."""


def new_secret() -> bytes:
    """For one file."""
    return AESGCM.generate_key(8 * SECRET_BYTES)


def sealed_size(size: int) -> int:
    """Of a file of so many bytes."""
    return size + TAG_BYTES * _chunks(size)


def _chunks(size: int) -> int:
    return max(1, -(-size // PLAIN_BYTES))  # an empty file has an empty last one


class FileSeal:
    """Of one file of ``size`` bytes."""

    def __init__(self, secret: bytes, size: int) -> None:
        self._aes = AESGCM(secret)
        self._size = size
        self._tags: dict[int, bytes] = {}
        self.chunks = _chunks(size)

    def _nonce(self, number: int) -> bytes:
        return number.to_bytes(_NUMBER_BYTES, "big") + bytes([number == self.chunks - 1])

    def _plain_bytes(self, number: int) -> int:
        return min(PLAIN_BYTES, self._size - number * PLAIN_BYTES)

    def seal(self, number: int, plain: bytes) -> bytes:
        """Raises SdkError for another content than it was called with before."""
        chunk = self._aes.encrypt(self._nonce(number), plain, None)
        tag = chunk[-TAG_BYTES:]
        # Other contents have other tags: nobody who could aim at equal ones knows the key.
        if len(plain) != self._plain_bytes(number) or self._tags.setdefault(number, tag) != tag:
            raise SdkError("the file was changed while it was sent")
        return chunk

    def open(self, number: int, chunk: bytes) -> bytes:
        """Raises BadChunk."""
        if len(chunk) != self._plain_bytes(number) + TAG_BYTES:
            raise BadChunk(f"chunk {number} has {len(chunk)} bytes")
        try:
            return self._aes.decrypt(self._nonce(number), chunk, None)
        except InvalidTag as error:
            raise BadChunk(f"chunk {number} is not what was sent") from error
