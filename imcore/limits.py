"""What one message of the client protocol may hold (docs/protocol.md); both ends must agree.

A client that sends more than the service reads would believe that the rest had arrived.
"""

from __future__ import annotations

CONTENT_BYTES_MAX = 96 * 1024  # of any region; leaves room for CLAIMS_MAX in the same message
MENTIONS_MAX = 100  # of one message
MEDIA_MAX = 20  # files and pictures of one message
CLAIMS_MAX = 256  # of one send or claim
OUTBOX_HEADS_MAX = 1_000  # of one Connect
# The first message, from whom nothing is known yet: it must fit all heads of usual names. What does
# not fit is left out of them by the SDK; they are a help, not a promise.
CONNECT_BYTES_MAX = 64 * 1024
OUTBOX_HEADS_BYTES_MAX = 48 * 1024
PULLS_MAX = 50  # of one request
CONVERSATION_CHARS_MAX = 131  # of a direct one: d:<uid>:<uid>, 64 each

TYPING_MEMBERS_MAX = 50  # in a larger conversation nobody is told who types
WATCHED_MAX = 200  # users whose presence one device is told of

GROUP_CHANGES_MAX = 500  # members whom one request names: it is one entry, which all members read
GROUP_ADMINS_MAX = 100  # of a group, as one IDC knows it: all of them are in one answer
GROUP_PAGE = 1_000  # members in one answer

KEY_DEVICES_MAX = 10  # devices of a user with keys for end-to-end encryption
ENCRYPTED_MEMBERS_MAX = 50  # of an encrypted group
SHARES_MAX = 128  # devices that one message may bring a key: what of it is no content is small

CID_MAX = (1 << 63) - 1  # the next one must still be a number on the wire (SendAck.want)
AWAY_MS_MAX = (1 << 32) - 1  # of a device, as its route can say it
