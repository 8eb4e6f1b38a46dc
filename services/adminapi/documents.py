"""What the admin API is asked and answers, as documents; the OpenAPI document is made of these."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, TypeAdapter

from imcore.limits import CID_MAX, CONTENT_BYTES_MAX, GROUP_CHANGES_MAX, MENTIONS_MAX

ID = r"[A-Za-z0-9._@-]{1,64}"
UIDS_MAX = 100  # of one look at who is online

Uid = Annotated[str, StringConstraints(pattern=f"^{ID}$")]
GroupId = Annotated[str, StringConstraints(pattern=f"^g:{ID}$")]
IdempotencyKey = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9._:@-]{1,128}$")]
_BASE64 = r"^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?$"


def _whole(value: object) -> object:
    """To JSON Schema 1.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Document(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


# ----------------------------------------------------------------------------- asked


class _Send(Document):
    to: Annotated[str, StringConstraints(pattern=f"^(?:g:)?{ID}$")] = Field(
        description="A uid, or the g:... id of a group, of which the sender need not be a member"
    )
    mentions: list[Uid] = Field(default=[], max_length=MENTIONS_MAX)


class SendText(_Send):
    """A message whose content is this text in UTF-8."""

    text: str = Field(max_length=CONTENT_BYTES_MAX)


class SendBytes(_Send):
    """A message of any content."""

    content_base64: Annotated[str, StringConstraints(pattern=_BASE64)] = Field(
        max_length=CONTENT_BYTES_MAX * 4 // 3 + 4
    )


Send = SendText | SendBytes


class MessageKey(Document):
    """What names a message for ever: as a send answers it, and in this order in webhooks."""

    uid: Uid
    device: Uid
    outbox: Uid
    conversation: Annotated[str, StringConstraints(pattern=f"^(?:g:{ID}|d:{ID}:{ID})$")]
    cid: Annotated[int, Field(ge=1, le=CID_MAX), BeforeValidator(_whole)]


class Recall(Document):
    """For good, whoever sent it."""

    key: MessageKey


class CreateGroup(Document):
    """A group that exists already stays as it is."""

    owner: Uid
    members: list[Uid] = Field(default=[], max_length=GROUP_CHANGES_MAX - 1)
    name: str = Field(default="", max_length=128)


class RoleOf(Document):
    uid: Uid
    role: Literal["member", "admin", "owner"]


class ChangeGroup(Document):
    """How it is to be; what is so already stays."""

    join: list[Uid] = Field(default=[], max_length=GROUP_CHANGES_MAX)
    leave: list[Uid] = Field(default=[], max_length=GROUP_CHANGES_MAX)
    name: str = Field(default="", max_length=128, description="empty: as it is")
    roles: list[RoleOf] = Field(default=[], max_length=GROUP_CHANGES_MAX)


class Kick(Document):
    device: Uid | None = Field(default=None, description="absent: every device of the user")


# -------------------------------------------------------------------------- answered


class Sent(Document):
    key: MessageKey
    conversation: str
    known: bool = Field(description="It had been accepted before: by a request with this key")


class Done(Document):
    pass


class Group(Document):
    conversation: GroupId
    name: str
    members: list[str] = Field(description="A page of them, sorted")
    more: bool = Field(description="Ask again with `after`, the last of these")
    count: int = Field(description="Of all members")
    owner: str
    admins: list[str]


class Device(Document):
    device: str
    kind: str = Field(description="phone, desktop, web or tablet; empty: its token does not say")
    online: bool
    idc: str
    since_ms: int = Field(description="When it came, or went")


class User(Document):
    uid: str
    online: bool = Field(description="Any device, in any IDC")
    devices: list[Device]


class Users(Document):
    users: list[User]


class Failure(Document):
    code: str = Field(description="Act on this, never on the text")
    message: str
    retry_after_ms: int = Field(ge=0, description="0: the same request gives the same answer")


class Error(Document):
    error: Failure


SEND: TypeAdapter[Send] = TypeAdapter(Send)
UID: TypeAdapter[str] = TypeAdapter(Uid)
GROUP_ID: TypeAdapter[str] = TypeAdapter(GroupId)
IDEMPOTENCY_KEY: TypeAdapter[str] = TypeAdapter(IdempotencyKey)
