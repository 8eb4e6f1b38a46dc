"""Chat clients of a deployment, by the SDK, with tokens of their own."""

from __future__ import annotations

import random

from imcore.runtime import Clock
from imctl.identity import ipconf_urls, token_for
from imctl.target.base import Target
from services.loadgen.sdk import SdkClients


def sdk_clients(target: Target, clock: Clock, rng: random.Random) -> SdkClients:
    return SdkClients(
        ipconf_urls(target),
        target.pki / "ca.pem",
        lambda uid, device: token_for(target, uid, device, clock),
        rng,
    )
