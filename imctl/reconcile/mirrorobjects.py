"""MirrorMaker 2 into an IDC, as objects of a Replication. Pure.

Strimzi's KafkaMirrorMaker2 where the cluster has that kind, else a Deployment of our own, whose pod
is made anew when its settings change. Both as `imctl replication render` prints them.
"""

from __future__ import annotations

from collections.abc import Iterable

from imcore.errors import BadInput
from imcore.region.model import Region
from imctl.api.views import Mirror
from imctl.engines import mm2, mm2_config, strimzi
from imctl.engines.mm2_config import Credentials
from imctl.reconcile.objects import TEMPLATE, hash_of, owned
from imctl.reconcile.observed import Object, Owner

STRIMZI = ("kafka.strimzi.io/v1", "KafkaMirrorMaker2")
DEPLOYMENT = ("apps/v1", "Deployment")
KINDS = (STRIMZI, DEPLOYMENT, ("v1", "ConfigMap"))  # of which there may be some


def labels_of(owner: Owner) -> dict[str, str]:
    return {
        "app.kubernetes.io/name": "mirrormaker2",
        "app.kubernetes.io/component": "mirror",
        "app.kubernetes.io/instance": owner.name,
    }


def selector_of(owner: Owner) -> str:
    return ",".join(f"{name}={value}" for name, value in labels_of(owner).items())


def credentials(region: Region, wish: Mirror) -> Credentials | None:
    """What it shows to brokers. None: MirrorMaker 2 is not the mirror of that IDC. Raises
    BadInput."""
    try:
        idc = region.idc(wish.idc)
    except KeyError:
        known = ", ".join(idc.name for idc in region.spec.idcs)
        raise BadInput(f"mirror.idc: expected one of {known}, got {wish.idc!r}") from None
    if idc.engines.mirror.mirrormaker2 is None:
        return None
    return mm2_config.credentials_of(region, wish.idc, mm2.secrets_file(mm2.FOLDER))


def keys(shown: Credentials) -> list[str]:
    """That the Secret must have."""
    pairs = (
        (strimzi.CA, shown.ca),
        (strimzi.CERTIFICATE, shown.certificate),
        (strimzi.KEY, shown.key),
        (strimzi.PASSWORD, shown.username),
    )
    return [key for key, wanted in pairs if wanted]


def objects(
    owner: Owner, wish: Mirror, region: Region, shown: Credentials, has_strimzi: bool
) -> list[Object]:
    """In the order of applying them; the last one is what runs. Raises BadInput."""
    flows = mm2_config.flows_into(region, wish.idc)
    # Strimzi can show a certificate or a password, not both.
    if has_strimzi and not (shown.certificate and shown.username):
        return _owned(owner, [strimzi.strimzi(flows, shown, wish.secret)])
    settings, workload = strimzi.deployment(flows, shown, wish.secret, wish.image or strimzi.IMAGE)
    template = workload["spec"]["template"]
    template["metadata"]["annotations"] = {TEMPLATE: hash_of(settings["data"])}
    return _owned(owner, [settings, workload])


def _owned(owner: Owner, made: Iterable[Object]) -> list[Object]:
    heads = ("apiVersion", "kind", "metadata")
    return [
        owned(
            owner, labels_of(owner), each["apiVersion"], each["kind"], each["metadata"]["name"],
            {name: part for name, part in each.items() if name not in heads},
        )
        for each in made
    ]  # fmt: skip


def why_not_ready(found: Object | None) -> str:
    """``found``: what runs, as it is in the cluster. Empty: it is ready."""
    if found is None:
        return "it was made just now"
    status, generation = found.get("status", {}), found["metadata"].get("generation", 0)
    if status.get("observedGeneration", 0) < generation:
        return "its controller has not seen it yet"
    if found["kind"] == DEPLOYMENT[1]:
        running = status.get("updatedReplicas", 0) and status.get("readyReplicas", 0)
        return "" if running else "its pod is not ready"
    ready: Object = next(
        (each for each in status.get("conditions", ()) if each["type"] == "Ready"), {}
    )
    if ready.get("status") == "True":
        return ""
    return str(ready.get("message") or "Strimzi has not made it yet")
