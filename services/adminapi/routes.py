"""Every path of the admin API in one table: what it takes, answers and needs. Pure."""

from __future__ import annotations

from typing import Any, NamedTuple

from imcore.servicetokens import Scope
from services.adminapi import documents as docs


class Route(NamedTuple):
    """``verb``: its name in metrics and the audit log. ``body``: the form of what is sent."""

    verb: str
    method: str
    path: str
    scope: Scope
    summary: str
    answer: type[docs.Document]
    body: Any = None
    changes: bool = True  # so it stands in the audit log


ROUTES = (
    Route(
        "send", "POST", "/v1/messages", Scope.MESSAGES,
        "Send a message as the service's user. Acts once for each Idempotency-Key and receiver, "
        "in whichever IDCs it is asked",
        docs.Sent, docs.Send,
    ),
    Route(
        "recall", "POST", "/v1/messages/recall", Scope.MESSAGES, "Recall a message of anybody",
        docs.Done, docs.Recall,
    ),
    Route(
        "create_group", "PUT", "/v1/groups/{conversation}", Scope.GROUPS,
        "Create a group under an id that the caller has chosen, at random: who knows it may join",
        docs.Done, docs.CreateGroup,
    ),
    Route(
        "change_group", "PATCH", "/v1/groups/{conversation}", Scope.GROUPS,
        "Set who is in a group, its name and roles; at most 500 users are named at once",
        docs.Done, docs.ChangeGroup,
    ),
    Route(
        "group", "GET", "/v1/groups/{conversation}", Scope.READ, "Look at a group and its members",
        docs.Group, changes=False,
    ),
    Route(
        "kick", "POST", "/v1/users/{uid}/kick", Scope.KICK,
        "End the sessions of a user's devices, in every IDC", docs.Done, docs.Kick,
    ),
    Route(
        "users", "GET", "/v1/users", Scope.READ,
        "Look whether users are online, and with which devices", docs.Users, changes=False,
    ),
)  # fmt: skip
