"""What the checker keeps of a history while it streams by.

Messages, devices and conversations are small integers; a view is a list of message numbers that
share one int object each, so two million deliveries take tens of megabytes.
"""

from __future__ import annotations

from dataclasses import dataclass, field

NEVER = 1 << 62  # later than any time of a history


@dataclass(slots=True)
class Message:
    """``sender`` indexes (uid, device) pairs; ``own`` is its number among that sender's messages
    of the conversation, in the order in which they were composed. Times in µs."""

    tag: str
    conversation: int
    sender: int
    own: int
    composed: int
    acked: int = NEVER
    acked_at: str = ""  # the IDC that its sender was connected to then
    held: bool = False  # that IDC has shown it to another device, so what it answers has it
    shown_mask: int = 0  # bit: the device's number within the conversation


@dataclass(slots=True)
class DeviceState:
    name: str
    uid: str
    opened: int
    sender: int
    closed: bool = False
    idc: str = ""  # connected there
    unseen: list[int] = field(default_factory=list)  # own messages, acked and not shown to it


@dataclass(slots=True)
class ViewState:
    """One device's view of one conversation, as its application would have it."""

    bit: int
    order: list[int] = field(default_factory=list)
    shown: list[int] = field(default_factory=list)  # as they came, for what was seen when
    composed: list[tuple[int, int]] = field(default_factory=list)  # (message, seen)
    top: dict[int, int] = field(default_factory=dict)  # highest own number shown, by sender
    cursors: list[tuple[str, int]] = field(default_factory=list)  # (uid, message), as told
    moved: set[int] = field(default_factory=set)


@dataclass(slots=True)
class LoginState:
    name: str
    uid: str
    idc: str
    views: dict[int, list[int]] = field(default_factory=dict)
    _held: dict[int, set[int]] = field(default_factory=dict)

    def holds(self, conversation: int) -> set[int]:
        """The messages of its view, once it has no more."""
        held = self._held.get(conversation)
        if held is None:
            held = self._held[conversation] = set(self.views.get(conversation, ()))
        return held


@dataclass(slots=True)
class ConversationState:
    id: str
    messages: list[int] = field(default_factory=list)
    members: dict[str, list[list[int]]] = field(default_factory=dict)  # uid: [from, to] intervals
    views: dict[int, ViewState] = field(default_factory=dict)  # by device

    def stays(self, uid: str) -> bool:
        """Whether this user is a member in the end."""
        intervals = self.members.get(uid)
        return intervals is not None and intervals[-1][1] == NEVER

    def demanded(self, uid: str, composed: int, acked: int) -> bool:
        """Whether this user must end up with a message of these times: a member from before it
        was composed until after it was acked."""
        return any(
            start <= composed and (end == NEVER or acked <= end)
            for start, end in self.members.get(uid, ())
        )


@dataclass(slots=True)
class State:
    messages: list[Message] = field(default_factory=list)
    by_tag: dict[str, int] = field(default_factory=dict)
    by_number: dict[str, int] = field(default_factory=dict)  # the tag without its hash
    devices: dict[int, DeviceState] = field(default_factory=dict)
    senders: dict[tuple[str, str], int] = field(default_factory=dict)
    conversations: dict[int, ConversationState] = field(default_factory=dict)
    logins: dict[int, LoginState] = field(default_factory=dict)
    own_counts: dict[tuple[int, int], int] = field(default_factory=dict)
    quiet_idcs: list[str] | None = None
    replicas: dict[str, str] = field(default_factory=dict)  # IDC: hash of its state in the end

    def view(self, device: int, conversation: int) -> ViewState:
        views = self.conversations[conversation].views
        if (view := views.get(device)) is None:
            view = views[device] = ViewState(bit=len(views))
        return view

    def place(self, message: int) -> str:
        """How a sentence names a message: tag and sender."""
        return self.messages[message].tag
