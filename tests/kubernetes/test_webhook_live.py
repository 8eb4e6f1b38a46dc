"""The webhook, asked by a real API server."""

from __future__ import annotations

import base64
import json
import shutil
from datetime import UTC, datetime
from pathlib import Path

from imcore import pki
from imctl.errors import Failed
from imctl.reconcile.admission import PATH
from imctl.reconcile.decide import judge_region
from imctl.target.places import free_port
from imctl.testing.cluster.cluster import Cluster as ApiServer
from tests.kubernetes.test_admission import apply, region
from tests.kubernetes.test_operator_live import Operators, until


def configuration(namespace: str, address: str, ca: bytes) -> dict[str, object]:
    """As the chart's, but that the operator runs beside the API server and not in a pod."""
    selector = {"matchLabels": {"kubernetes.io/metadata.name": namespace}}
    rule = {"apiGroups": ["imctl.dev"], "apiVersions": ["v1alpha1"], "resources": ["regions"]}
    webhook = {
        "name": "regions.imctl.dev",
        "admissionReviewVersions": ["v1"],
        "sideEffects": "None",
        "failurePolicy": "Fail",
        "timeoutSeconds": 30,
        "clientConfig": {
            "url": f"https://{address}{PATH}", "caBundle": base64.b64encode(ca).decode(),
        },
        "rules": [rule | {"operations": ["CREATE", "UPDATE"]}],
        "namespaceSelector": selector,
    }  # fmt: skip
    return {
        "apiVersion": "admissionregistration.k8s.io/v1",
        "kind": "ValidatingWebhookConfiguration",
        "metadata": {"name": namespace},
        "webhooks": [webhook],
    }


def test_a_region_is_refused_in_the_words_of_validate(
    api_server: ApiServer, namespace: str, tmp_path: Path
) -> None:
    host = api_server.layout.machine_address  # as the cluster sees this machine
    pki.init(tmp_path, {"hook": (host,)}, datetime.now(UTC))
    shutil.copy(tmp_path / "hook.pem", tmp_path / "tls.crt")
    shutil.copy(tmp_path / "hook.key", tmp_path / "tls.key")
    operators, address = Operators(api_server, namespace, tmp_path), f"{host}:{free_port()}"
    operators.start("--webhook", address, "--webhook-certificate", str(tmp_path))
    hook = configuration(namespace, address, (tmp_path / "ca.pem").read_bytes())
    api_server.kubectl("apply", "-f", "-", given=json.dumps(hook))
    try:
        until(lambda: operators.holder() != "")
        wrong = region()
        twice = {"name": "twice", "match": {"countries": ["FR"]}, "weights": {"dub": 1}}
        wrong["spec"]["geo"]["shards"] += [twice, twice | {"name": "thrice"}]
        _, problems = judge_region("two-idc", wrong["spec"])
        until(lambda: problems[0] in answered(api_server, namespace, wrong))
        assert "created" in apply(api_server, namespace, region())
    finally:
        api_server.kubectl("delete", "validatingwebhookconfiguration", namespace)
        operators.end()


def answered(server: ApiServer, namespace: str, document: object) -> str:
    """The refusal. A configuration takes a moment to be known in the API server."""
    try:
        server.kubectl(
            "create", "--dry-run=server", "--namespace", namespace, "-f", "-",
            given=json.dumps(document),
        )  # fmt: skip
    except Failed as error:
        return str(error)
    return ""
