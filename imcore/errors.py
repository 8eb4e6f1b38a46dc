"""Errors by what the caller can do about them; adapters translate library errors into these."""

from __future__ import annotations

from enum import StrEnum


class Code(StrEnum):
    """Error codes on the wire (``Error.code``); a client acts on these, never on the text."""

    BAD_REQUEST = "bad_request"
    UNAUTHENTICATED = "unauthenticated"
    FORBIDDEN = "forbidden"
    BLOCKED = "blocked"
    ENCRYPTED_ONLY = "encrypted_only"
    NOT_FOUND = "not_found"
    TOO_LARGE = "too_large"
    QUOTA = "quota"
    CID_CONFLICT = "cid_conflict"
    OVERLOADED = "overloaded"
    UNAVAILABLE = "unavailable"
    DEADLINE = "deadline"
    NOT_REPLICATED = "not_replicated"
    INTERNAL = "internal"


class ImError(Exception):
    """Base of what this project raises on purpose."""


class Refused(ImError):
    """A request was judged and refused; trying again unchanged gives the same answer."""

    def __init__(self, code: Code, message: str) -> None:
        super().__init__(message)
        self.code = code


class Unavailable(ImError):
    """It cannot be done now; the same request may succeed after ``retry_after_ms``. ``told``: what
    clients are told in place of the message, which may name hosts, or say what an engine says."""

    def __init__(self, message: str, retry_after_ms: int = 200, told: str = "") -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms
        self.told = told or message


class Overloaded(Unavailable):
    """There is more to do than there is room for, and this was turned away before any of it was
    done: the caller is to wait, not to try elsewhere at once."""


class NotTrusted(Unavailable):
    """An engine and this IDC do not accept who the other says it is. Nothing was done, and it will
    not pass by itself: a certificate, a user, a password or a right is wrong."""


def retry_after_ms(wait_s: float) -> int:
    """A wait as an answer tells it, where 0 would say that waiting is of no use."""
    return max(1, round(wait_s * 1000))


def code_of(error: ImError) -> Code:
    """How a client is told of it."""
    if isinstance(error, Refused):
        return error.code
    return Code.OVERLOADED if isinstance(error, Overloaded) else Code.UNAVAILABLE


class OutcomeUnknown(ImError):
    """A time-out or a lost peer: it may or may not have happened; ask again with the same id."""


class DiskFull(Unavailable):
    """The log could not write; nothing of the batch counts as accepted."""


class Damaged(ImError):
    """Stored bytes fail their check where they were known to be whole."""


class StaleWriter(ImError):
    """A newer epoch owns what this writer wanted to change; it must stop, never retry."""


class StoreReplaced(StaleWriter):
    """An engine holds another state than the one that was opened: wiped, replaced or restored under
    this process, which must begin again with what it finds."""


class BadInput(ImError):
    """A user's file or flag is wrong: the message names it, what was expected and what to do."""
