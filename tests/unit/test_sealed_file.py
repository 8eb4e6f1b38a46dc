"""Files that are encrypted chunk by chunk: what is changed, cut, longer or in another order is
found out, and no chunk's key stream ever covers two contents."""

from __future__ import annotations

import random

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from services.sdk.core.sealed_file import (
    CHUNK_BYTES,
    PLAIN_BYTES,
    BadChunk,
    FileSeal,
    new_secret,
)
from services.sdk.core.sealed_file import sealed_size as size_of
from services.sdk.errors import SdkError
from services.sdk.media import BytesSource, SealedSource

SECRET = b"s" * 32
DATA = random.Random(3).randbytes(2 * PLAIN_BYTES + 1_234)
SIZES = (0, 1, PLAIN_BYTES - 1, PLAIN_BYTES, PLAIN_BYTES + 1, 2 * PLAIN_BYTES, len(DATA))


def sealed(data: bytes, secret: bytes = SECRET) -> bytes:
    source = SealedSource(BytesSource(data), secret)
    return source.read(0, source.size)


def opened(stored: bytes, size: int, secret: bytes = SECRET) -> bytes:
    """As a download reads it: so many chunks as the message's size says."""
    seal = FileSeal(secret, size)
    chunks = [stored[n * CHUNK_BYTES : (n + 1) * CHUNK_BYTES] for n in range(seal.chunks)]
    return b"".join(seal.open(number, chunk) for number, chunk in enumerate(chunks))


@pytest.mark.parametrize("size", SIZES)
def test_it_is_read_with_its_key_and_with_no_other(size: int) -> None:
    data = DATA[:size]
    stored = sealed(data)
    assert len(stored) == size_of(size)
    assert opened(stored, size) == data
    assert size < 32 or not any(data[at : at + 32] in stored for at in range(0, size - 31, 997))
    with pytest.raises(BadChunk, match="chunk 0"):
        opened(stored, size, b"t" * 32)


def test_each_chunk_is_aes_gcm_under_its_number_and_the_last_one_says_so() -> None:
    stored, aes = sealed(DATA), AESGCM(SECRET)
    for number in range(3):
        chunk = stored[number * CHUNK_BYTES : (number + 1) * CHUNK_BYTES]
        nonce = number.to_bytes(11, "big") + bytes([number == 2])
        plain = DATA[number * PLAIN_BYTES : (number + 1) * PLAIN_BYTES]
        assert aes.decrypt(nonce, chunk, None) == plain


def test_every_file_has_a_key_of_its_own() -> None:
    assert len({new_secret() for _ in range(100)}) == 100
    assert sealed(DATA, new_secret()) != sealed(DATA, new_secret())


@pytest.mark.parametrize("at", [0, 77, CHUNK_BYTES - 1, CHUNK_BYTES, 2 * CHUNK_BYTES, -1])
def test_a_changed_byte_is_found_out(at: int) -> None:
    stored = bytearray(sealed(DATA))
    stored[at] ^= 1
    with pytest.raises(BadChunk, match="chunk"):
        opened(bytes(stored), len(DATA))


def test_chunks_in_another_order_are_found_out() -> None:
    stored = sealed(DATA)
    first, second, last = (stored[n * CHUNK_BYTES : (n + 1) * CHUNK_BYTES] for n in range(3))
    for other in (second + first + last, first + first + last, second + second + last):
        with pytest.raises(BadChunk, match="chunk"):
            opened(other, len(DATA))


@pytest.mark.parametrize("size", [0, 1, PLAIN_BYTES, PLAIN_BYTES + 1, 2 * PLAIN_BYTES])
def test_what_is_cut_is_found_out_though_the_size_were_a_liars(size: int) -> None:
    stored = sealed(DATA)
    for cut in (stored, stored[: size_of(size)]):
        with pytest.raises(BadChunk, match="chunk"):
            opened(cut, size)
    with pytest.raises(BadChunk, match="chunk"):
        opened(stored[:-1], len(DATA))
    with pytest.raises(BadChunk, match="chunk"):
        opened(stored[: 2 * CHUNK_BYTES], len(DATA))


def test_what_is_longer_is_found_out() -> None:
    with pytest.raises(BadChunk, match="chunk"):
        opened(sealed(DATA) + b"\0", len(DATA) + 1)
    whole = sealed(DATA[: 2 * PLAIN_BYTES])
    with pytest.raises(BadChunk, match="chunk"):  # a last chunk that is none
        opened(whole + sealed(b""), 2 * PLAIN_BYTES + 1)


def test_any_part_is_the_same_however_often_it_is_read() -> None:
    source = SealedSource(BytesSource(DATA), SECRET)
    whole, rng = source.read(0, source.size), random.Random(5)
    assert source.size == len(whole)
    for _ in range(50):
        at, size = rng.randrange(source.size), rng.randrange(1, 2 * CHUNK_BYTES)
        assert source.read(at, size) == whole[at : at + size]
    assert source.read(source.size, 10) == b""


def test_a_file_that_changes_meanwhile_is_given_up_rather_than_encrypted_anew() -> None:
    class Growing:
        """Its second chunk is another one when it is read again."""

        size = len(DATA)
        changes = b""

        def read(self, offset: int, size: int) -> bytes:
            data = DATA[offset : offset + size]
            return data[: -len(self.changes)] + self.changes if self.changes else data

    plain = Growing()
    source = SealedSource(plain, SECRET)
    source.read(0, source.size)
    plain.changes = b"other"
    for again in (b"other", b"changes"):
        plain.changes = again
        with pytest.raises(SdkError, match="changed"):
            source.read(CHUNK_BYTES, CHUNK_BYTES)
    plain.changes = b""
    assert opened(source.read(0, source.size), len(DATA)) == DATA
    cut = SealedSource(BytesSource(DATA), SECRET)
    cut._source = BytesSource(DATA[:-1])
    with pytest.raises(SdkError, match="changed"):
        cut.read(0, cut.size)
