"""The tests of the API and the operator on an API server that runs already."""

from __future__ import annotations

import os
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

import pytest
import yaml

from imctl.api.crd import definition
from imctl.api.kinds import KINDS
from imctl.errors import Failed
from tests.conftest import impossible_here


class ApiServer:
    """``kubectl`` against it, and its kubeconfig for programs of ours."""

    def __init__(self, kubeconfig: Path) -> None:
        self.kubeconfig = kubeconfig

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """What it prints. ``given``: its standard input. Raises Failed with what it said."""
        command = ["kubectl", f"--kubeconfig={self.kubeconfig}", *arguments]
        done = subprocess.run(
            command, input=given, capture_output=True, text=True, check=False, timeout=60
        )
        if done.returncode != 0:
            raise Failed(done.stderr.strip() or done.stdout.strip())
        return done.stdout

    def wait_for_kinds(self, *plurals: str) -> None:
        """Until they can be asked for; `kubectl wait` stumbles over a CRD without conditions."""
        deadline = time.monotonic() + 30
        for plural in plurals:
            while True:
                try:
                    self.kubectl("get", plural, "--all-namespaces")
                    break
                except Failed:
                    if time.monotonic() > deadline:
                        raise
                    time.sleep(0.5)


@pytest.fixture(scope="session")
def api_server() -> ApiServer:
    """With our CRDs in it."""
    path = os.environ.get("IM_KUBECONFIG")
    if path is None:
        impossible_here(
            "no API server of Kubernetes is given", "IM_KUBECONFIG=FILE names one for tests"
        )
    found = ApiServer(Path(path))
    crds = yaml.safe_dump_all([definition(kind) for kind in KINDS])
    found.kubectl("apply", "--server-side", "--force-conflicts", "-f", "-", given=crds)
    found.wait_for_kinds(*(kind.plural for kind in KINDS))
    return found


@pytest.fixture
def namespace(api_server: ApiServer) -> Iterator[str]:
    """Of its own for each test."""
    name = f"im-{uuid4().hex[:8]}"
    api_server.kubectl("create", "namespace", name)
    yield name
    api_server.kubectl("delete", "namespace", name, "--wait=false")
