"""The pod that deletes the data of an IDC, whose own pod is away: nothing else reaches its volume.
Pure."""

from __future__ import annotations

from copy import deepcopy
from datetime import datetime

from imctl.api.model import IdcSpec
from imctl.reconcile.objects import CONTAINER_SECURITY, POD_SECURITY, VAR, placed
from imctl.reconcile.observed import Object

LASTS_S = 60  # then the cluster ends it, whoever waits for it
ENDS_S = 1  # its Python, which is PID 1, does not hear that it is told to end


def command(until: str, var: str = VAR) -> str:
    """In Python. ``until``: when the IDC may run again (RFC 3339). The data are out of the way at
    once, and then deleted under another name: whoever does so late does no harm to an IDC that runs
    again."""
    return f"""
import os, pathlib, shutil, sys, time
if time.time() >= {datetime.fromisoformat(until).timestamp()!r}:
    sys.exit("the IDC may run again, so its data are in use")
var = pathlib.Path({var!r})
if (var / "data").exists():
    (var / "data").rename(var / f"data.gone-{{time.time_ns()}}")
    folder = os.open(var, os.O_RDONLY)
    os.fsync(folder)
for gone in var.glob("data.gone-*"):
    shutil.rmtree(gone)
"""


def name_of(workload: str) -> str:
    return f"{workload}-blank"


def pod(part: str, namespace: str, workload: str, spec: IdcSpec, until: str) -> Object:
    """``workload``: the IDC's StatefulSet. ``until``: it is kept down so long. Its labels
    are none by which the IDC's pod is found."""
    labels = {
        "app.kubernetes.io/name": "imctl",
        "app.kubernetes.io/component": "blank",
        "app.kubernetes.io/instance": part,
    }
    container: Object = {
        "name": "blank",
        "image": spec.image,
        "command": ["python3", "-c", command(until)],
        "resources": {
            "requests": {"cpu": "10m", "memory": "64Mi"},
            "limits": {"memory": "64Mi"},
        },
        "securityContext": deepcopy(CONTAINER_SECURITY),
        "volumeMounts": [{"name": "data", "mountPath": VAR}],
    }
    wanted: Object = {
        "restartPolicy": "Never",
        "activeDeadlineSeconds": LASTS_S,
        "terminationGracePeriodSeconds": ENDS_S,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": deepcopy(POD_SECURITY),
        "containers": [container],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": f"data-{workload}-0"}}],
    }
    wanted |= placed(spec)  # where the IDC's own pod may be, its volume is
    if spec.image_pull_secret:
        wanted["imagePullSecrets"] = [{"name": spec.image_pull_secret}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name_of(workload), "namespace": namespace, "labels": labels},
        "spec": wanted,
    }
