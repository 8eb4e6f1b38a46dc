"""One PD and one TiKV-protocol mock as processes on this machine: command lines, readiness.

Both without TLS, on loopback: the client has none (services.engines.tikv.client). The mock is not
TiKV, which cannot be built from package registries: docs/engines.md says what it proves.
"""

from __future__ import annotations

import http.client
import json
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Pd:
    """``peer_address``: for other members; one without others needs it all the same."""

    name: str
    data: Path
    address: str
    peer_address: str

    def command(self, binary: Path) -> list[str]:
        url, peer = f"http://{self.address}", f"http://{self.peer_address}"
        flags = {
            "name": self.name,
            "data-dir": self.data,
            "client-urls": url,
            "advertise-client-urls": url,
            "peer-urls": peer,
            "advertise-peer-urls": peer,
            "initial-cluster": f"{self.name}={peer}",
            "log-level": "warn",
        }
        return [str(binary), *(f"--{flag}={value}" for flag, value in flags.items())]

    def healthy(self, timeout_s: float = 1.0) -> bool:
        """Whether it has a leader and answers; never raises."""
        said = _asked(self.address, "/pd/api/v1/members", timeout_s)
        return isinstance(said, dict) and bool(said.get("leader"))

    def has_store(self, timeout_s: float = 1.0) -> bool:
        """Whether a store has reported and is up; never raises."""
        said = _asked(self.address, "/pd/api/v1/stores", timeout_s)
        stores = said.get("stores") if isinstance(said, dict) else None
        return bool(stores) and all(row["store"]["state_name"] == "Up" for row in stores or ())


@dataclass(frozen=True, slots=True)
class MockStore:
    """``data`` None: rows in memory, gone with the process. ``control``: where tests split regions
    and inject faults; empty: nowhere."""

    pd: str
    address: str
    data: Path | None = None
    control: str = ""

    def command(self, binary: Path) -> list[str]:
        flags = {"pd": self.pd, "addr": self.address, "control": self.control}
        if self.data is not None:
            flags["data"] = str(self.data)
        return [str(binary), *(f"-{flag}={value}" for flag, value in flags.items() if value)]


def _asked(address: str, path: str, timeout_s: float) -> object:
    """None when there is no answer."""
    host, _, port = address.rpartition(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=timeout_s)
    try:
        connection.request("GET", path)
        answer = connection.getresponse()
        said: object = json.loads(answer.read())
        return said if answer.status == http.HTTPStatus.OK else None
    except (OSError, ValueError, http.client.HTTPException):
        return None
    finally:
        connection.close()
