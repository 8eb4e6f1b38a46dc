"""The pod that deletes the data of an IDC, whose own pod is away: nothing else reaches its volume.
Pure."""

from __future__ import annotations

from copy import deepcopy

from imctl.api.model import IdcSpec
from imctl.reconcile.objects import CONTAINER_SECURITY, POD_SECURITY, VAR
from imctl.reconcile.observed import Object

LASTS_S = 60  # then the cluster ends it, whoever waits for it
DELETE = (
    f"import pathlib, shutil; data = pathlib.Path('{VAR}/data'); data.exists() and "
    "shutil.rmtree(data)"
)


def name_of(workload: str) -> str:
    return f"{workload}-blank"


def pod(part: str, namespace: str, workload: str, spec: IdcSpec) -> Object:
    """``workload``: the IDC's StatefulSet. Its labels are none by which the IDC's pod is found."""
    labels = {
        "app.kubernetes.io/name": "imctl",
        "app.kubernetes.io/component": "blank",
        "app.kubernetes.io/instance": part,
    }
    container: Object = {
        "name": "blank",
        "image": spec.image,
        "command": ["python3", "-c", DELETE],
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
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": deepcopy(POD_SECURITY),
        "containers": [container],
        "volumes": [{"name": "data", "persistentVolumeClaim": {"claimName": f"data-{workload}-0"}}],
    }
    if spec.node_selector:
        wanted["nodeSelector"] = dict(spec.node_selector)
    if spec.image_pull_secret:
        wanted["imagePullSecrets"] = [{"name": spec.image_pull_secret}]
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name_of(workload), "namespace": namespace, "labels": labels},
        "spec": wanted,
    }
