"""What it takes to speak to a region's processes; every target has it, and so has the operator."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from imcore.region.model import Region


class Reach(Protocol):
    """``pki``: the folder with the CA and the certificate to show."""

    region: Region
    pki: Path

    def address(self, name: str) -> str:
        """HOST:PORT of the Admin service of an IDC or the witness."""
        ...

    def audit_file(self) -> Path:
        """The chain in which what is asked is noted."""
        ...
