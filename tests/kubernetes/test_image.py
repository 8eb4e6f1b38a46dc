"""Our image in a pod: as whom it runs, and what the API server tells of it."""

from __future__ import annotations

import re
from typing import Any

import pytest

from imctl.errors import Failed
from imctl.testing.cluster import image
from imctl.testing.cluster.cluster import Cluster

SECURE = {
    "allowPrivilegeEscalation": False,
    "readOnlyRootFilesystem": True,
    "capabilities": {"drop": ["ALL"]},
}


def pod(name: str, command: list[str], **container: Any) -> dict[str, Any]:
    """Of our image, as little allowed as a namespace with the level "restricted" wants it."""
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {
            "securityContext": {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}},
            "automountServiceAccountToken": False,
            "terminationGracePeriodSeconds": 1,
            "containers": [
                {
                    "name": "imctl",
                    "image": image.NAME,
                    "imagePullPolicy": "Never",
                    "command": command,
                    "securityContext": SECURE,
                    **container,
                }
            ],
        },
    }


def test_a_pod_of_our_image_runs_without_root_and_without_writing(
    cluster: Cluster, namespace: str
) -> None:
    probe = {"exec": {"command": ["imctl", "--version"]}, "periodSeconds": 1, "timeoutSeconds": 20}
    script = "imctl --version && exec sleep 600"
    wanted = pod("one", ["sh", "-c", script], readinessProbe=probe)
    cluster.apply(wanted, namespace=namespace)
    own = ("--namespace", namespace)
    cluster.kubectl("wait", *own, "--for=condition=Ready", "pod/one", "--timeout=180s")
    assert re.fullmatch(r"\d+\.\d+\.\d+\n", cluster.kubectl("logs", *own, "one"))
    inside = ("exec", *own, "one", "--")
    assert cluster.kubectl(*inside, "id", "-u").strip() == "65532"
    with pytest.raises(Failed, match="Read-only file system"):
        cluster.kubectl(*inside, "touch", "/x")
    # It is what every role imports.
    assert "--region" in cluster.kubectl(*inside, "python3", "-m", "services.node", "--help")
    # Modules are compiled in the image, and taken whatever the files' times (the fifth byte):
    # nobody could keep what a start compiles.
    code = "import imctl.main as m; print(m.__cached__, open(m.__cached__, 'rb').read(5)[4])"
    found, kind = cluster.kubectl(*inside, "python3", "-c", code).split()
    assert found.startswith("/opt/own/imctl/__pycache__/") and kind == "1"


def test_the_image_has_no_tool_that_changes_it(cluster: Cluster, namespace: str) -> None:
    cluster.apply(pod("two", ["sleep", "600"]), namespace=namespace)
    own = ("--namespace", namespace)
    cluster.kubectl("wait", *own, "--for=condition=Ready", "pod/two", "--timeout=180s")
    for tool in ("pip", "apt-get", "curl", "gcc"):
        with pytest.raises(Failed):
            cluster.kubectl("exec", *own, "two", "--", "sh", "-c", f"command -v {tool}")
