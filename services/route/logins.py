"""Which sessions must end: beyond a policy's number, or kicked. Pure.

It follows from routes and kicks, which every IDC folds, so IDCs agree once they have folded the
same; each ends its own sessions only.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping

from services.route.table import Route

KEPT_MAX = 10_000  # kicks; a route that is folded so long after one that is older is not met


def surplus(
    routes: Mapping[str, Route], kind: str, most: int, usable: Callable[[str, str], bool]
) -> list[str]:
    """Of the user whose routes these are, the devices of that kind beyond the ``most`` that
    connected last. ``usable(idc, gateway)``: as of ``RouteTable.idcs_of``."""
    alive = [
        (route.since, route.origin, device)
        for device, route in routes.items()
        if not route.gone and route.kind == kind and usable(route.origin.idc, route.gateway)
    ]
    alive.sort(reverse=True)
    return [device for _, _, device in alive[most:]]


class Kicked:
    """Kicks that were folded: a route from before one may be folded after it."""

    def __init__(self) -> None:
        self._kicks: OrderedDict[tuple[str, str], tuple[int, str]] = OrderedDict()

    def add(self, uid: str, device: str, kept: str, hlc: int) -> None:
        """``device`` empty: every one but ``kept``."""
        key = (uid, device)
        known = self._kicks.get(key)
        if known is None or known[0] < hlc:
            self._kicks[key] = (hlc, kept)
            self._kicks.move_to_end(key)
            if len(self._kicks) > KEPT_MAX:
                self._kicks.popitem(last=False)

    def hits(self, uid: str, device: str, hlc: int) -> bool:
        """Whether a device that connected at this HLC was kicked since."""
        one, every = self._kicks.get((uid, device)), self._kicks.get((uid, ""))
        if one is not None and one[0] > hlc:
            return True
        return every is not None and every[0] > hlc and every[1] != device
