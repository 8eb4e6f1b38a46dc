"""The client SDK (docs/sdk.md): ``async with Client(...) as client: await client.send(...)``."""

from imcore.media import MediaName, MediaRef
from services.sdk.client import Client, Found, OwnDevice, ReadCounts, Readers, Sent, State
from services.sdk.core.events import (
    Changed,
    ConnectionChanged,
    CursorMoved,
    Event,
    FriendChanged,
    GroupChanged,
    IdentitySeen,
    Message,
    Missed,
    Moved,
    Presence,
    Typing,
)
from services.sdk.core.friends import Friends
from services.sdk.core.group import Announcement, Group
from services.sdk.core.sealed import KnownDevice
from services.sdk.core.summary import Last, Summary
from services.sdk.errors import (
    AuthError,
    Kicked,
    NotConnected,
    OutboxFull,
    OutboxLocked,
    Replaced,
    RequestRefused,
    SdkError,
    SendFailed,
)
from services.sdk.ipconf import IpconfClient
from services.sdk.options import Options

__all__ = [
    "Announcement",
    "AuthError",
    "Changed",
    "Client",
    "ConnectionChanged",
    "CursorMoved",
    "Event",
    "Found",
    "FriendChanged",
    "Friends",
    "Group",
    "GroupChanged",
    "IdentitySeen",
    "IpconfClient",
    "Kicked",
    "KnownDevice",
    "Last",
    "MediaName",
    "MediaRef",
    "Message",
    "Missed",
    "Moved",
    "NotConnected",
    "Options",
    "OutboxFull",
    "OutboxLocked",
    "OwnDevice",
    "Presence",
    "ReadCounts",
    "Readers",
    "Replaced",
    "RequestRefused",
    "SdkError",
    "SendFailed",
    "Sent",
    "State",
    "Summary",
    "Typing",
]
