"""What the SDK raises, by what an application can do about it."""

from __future__ import annotations

from imcore.errors import ImError


class SdkError(ImError):
    """Base of the SDK's errors."""


class SendFailed(SdkError):
    """The message is not known to be stored. ``code`` is of ``imcore.errors.Code``.

    ``pending``: it is still in the outbox and may be delivered later (a time-out, a closed
    client); otherwise it was refused for good and is out of the outbox."""

    def __init__(self, code: str, message: str, pending: bool = False) -> None:
        super().__init__(message)
        self.code = code
        self.pending = pending


class OutboxFull(SendFailed):
    """Too much is not replicated yet; nothing was written, try again later."""

    def __init__(self, message: str) -> None:
        super().__init__("outbox_full", message)


class StoreFailed(SdkError):
    """The outbox cannot be written now: a full disk, a locked file. It is tried again."""


class RequestRefused(SdkError):
    """The service judged a request (other than a send) and refused it."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


class AuthError(SdkError):
    """The token is not accepted: a new one is needed; the client does not reconnect."""


class Replaced(SdkError):
    """Another connection of this device took over; the client does not reconnect by itself."""


class Kicked(SdkError):
    """The user (on another device), an operator or a login beyond the region's limit has ended this
    device's session; the client does not reconnect by itself. A new client may connect."""


class NotConnected(SdkError):
    """No answer in time; the request may or may not have been carried out."""


class OutboxLocked(SdkError):
    """The outbox file is in use by another process, or by another client of this one."""
