"""How many files, and so connections, a process may have open at a time."""

from __future__ import annotations

import logging
import resource

log = logging.getLogger("im.node")

# 20,000 clients and 6,000 HTTP connections of those who poll, both twice while a gateway becomes
# its successor, handshakes, and what the other roles have open.
WANTED = 65_536


def raise_limit() -> int:
    """Up to ``WANTED``, as far as the system lets it, and returns how far. What a shell or a
    service manager gives to begin with is often 1,024: beyond that no client would be accepted,
    and no segment, snapshot or policy be opened either."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    infinite = resource.RLIM_INFINITY
    allowed = WANTED if hard == infinite else min(WANTED, hard)
    if soft != infinite and soft < allowed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (allowed, hard))
        soft = allowed
    if soft != infinite and soft < WANTED:
        log.warning(
            "this process may have %d files open, and a gateway with all its clients needs %d: "
            "raise the hard limit (ulimit -Hn, LimitNOFILE=)", soft, WANTED,
        )  # fmt: skip
    return soft
