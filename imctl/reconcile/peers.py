"""The processes of a region, as the operator speaks to them: with a certificate from a Secret."""

from __future__ import annotations

import base64
import binascii
import random
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cryptography import x509

from imcore.auditfile import FILE
from imcore.errors import BadInput, OutcomeUnknown, Refused, Unavailable
from imcore.pki import DOMAIN
from imcore.region.model import Region
from imcore.roles import NAMES, Role
from imcore.runtime import Clock
from imctl import admin
from imctl.reconcile.objects import CA, CERTIFICATE, KEY
from imctl.reconcile.observed import Object
from imctl.traffic import Control, Judged
from services.control.evaluate import Decision
from services.control.operations import Operation
from services.control.rules import Change
from services.policy.document import Policy

STATUS_S = 2.0
# What asking the processes of a region may raise, also before it comes to that.
SILENT = (BadInput, OutcomeUnknown, Refused, Unavailable)


class Mover(Protocol):
    """What the operator uses of ``Control``; errors as there."""

    async def policy(self) -> Policy: ...

    async def operation(self, name: str) -> Operation | None: ...

    async def judge(self, change: Change) -> Judged: ...

    async def submit(self, change: Change) -> Decision: ...

    def permits(self, change: Change) -> bool: ...


@dataclass(slots=True)
class _Reached:
    """A region by its own endpoints."""

    region: Region
    pki: Path
    audit: Path

    def address(self, name: str) -> str:
        return self.region.peer(name)

    def audit_file(self) -> Path:
        return self.audit


class Peers:
    """``audit``: a folder for the audit chains, one a namespace and region."""

    def __init__(self, clock: Clock, audit: Path) -> None:
        self._clock = clock
        self._audit = audit

    @asynccontextmanager
    async def steering(
        self, namespace: str, region: Region, secret: Object
    ) -> AsyncIterator[Mover]:
        """Raises BadInput for a Secret that is of no use."""
        folder = self._audit / namespace / region.metadata.name
        folder.mkdir(parents=True, exist_ok=True)
        with as_folder(secret) as pki:
            reached = _Reached(region, pki, folder / FILE)
            async with Control(reached, self._clock, random.Random()) as control:
                yield control

    async def status(self, region: Region, secret: Object, idc: str) -> dict[str, Any]:
        """The status document of an IDC's process. Raises BadInput as above, Unavailable,
        Refused."""
        with as_folder(secret) as pki:
            reached = _Reached(region, pki, self._audit / FILE)
            return await admin.status(reached, idc, STATUS_S)


@contextmanager
def as_folder(secret: Object) -> Iterator[Path]:
    """The Secret as a pki folder, for its owner only, as long as the block takes. Raises
    BadInput."""
    files = pki_of(secret)
    with tempfile.TemporaryDirectory(prefix="imctl-") as made:  # mode 0700
        folder = Path(made)
        for file, text in files.items():
            (folder / file).write_bytes(text)
        yield folder


def pki_of(secret: Object) -> dict[str, bytes]:
    """The files of a pki folder that the Secret holds, by name. Raises BadInput."""
    name, data = secret["metadata"]["name"], secret.get("data", {})
    try:
        ca, certificate, key = (
            base64.b64decode(data[each], validate=True) for each in (CA, CERTIFICATE, KEY)
        )
        role = _role(certificate)
    except KeyError as error:
        raise BadInput(f"Secret {name} lacks {error.args[0]}") from error
    except (ValueError, binascii.Error, x509.ExtensionNotFound) as error:
        raise BadInput(f"Secret {name}: expected certificates in PEM, got {error}") from error
    if role is None:
        raise BadInput(
            f"Secret {name}: expected the certificate of one of {', '.join(Role)}, got another's"
        )
    return {"ca.pem": ca, f"{role}.pem": certificate, f"{role}.key": key}


def _role(certificate: bytes) -> Role | None:
    loaded = x509.load_pem_x509_certificate(certificate)
    names = loaded.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    said = (each.removesuffix(f".{DOMAIN}") for each in names.get_values_for_type(x509.DNSName))
    return next((Role(each) for each in said if each in NAMES), None)
