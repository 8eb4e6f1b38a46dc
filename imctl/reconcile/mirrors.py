"""Brings the MirrorMaker 2 of an IDC to what a Replication and its Region say: look, apply, let go
of what is not wanted any more."""

from __future__ import annotations

from typing import NamedTuple

from imcore.errors import BadInput
from imcore.region.model import Region
from imctl.api.views import Mirror
from imctl.reconcile import mirrorobjects, needs
from imctl.reconcile.applied import Applied, Name
from imctl.reconcile.cluster import Cluster, Rejected
from imctl.reconcile.observed import Object, Owner


class Standing(NamedTuple):
    """``name``: of what runs, with its kind; empty: nothing of ours does."""

    name: str
    ready: bool
    reason: str
    message: str


class Mirrors:
    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster

    async def bring(
        self, owner: Owner, wish: Mirror | None, region: Region, applied: Applied
    ) -> Standing | None:
        """Once. None: none is asked for. Raises ImError for what may do better later; what is
        wrong with the wish is said, and what stands is left as it is."""
        try:
            wanted = await self._wanted(owner, wish, region)
        except BadInput as error:
            return Standing("", False, "Blocked", str(error))
        keep = frozenset((each["kind"], each["metadata"]["name"]) for each in wanted)
        if applied.kept != keep:
            await self._prune(owner, keep)
            applied.kept = keep
        if wish is None:
            return None
        if not wanted:
            said = f"the Region names another mirror than MirrorMaker 2 for {wish.idc}"
            return Standing("", False, "NotWanted", said)
        return await self._apply(wanted, applied)

    async def _wanted(self, owner: Owner, wish: Mirror | None, region: Region) -> list[Object]:
        """Raises BadInput."""
        shown = mirrorobjects.credentials(region, wish) if wish is not None else None
        if wish is None or shown is None:
            return []
        if keys := mirrorobjects.keys(shown):
            secret = await needs.secret_of(self._cluster, owner, wish.secret)
            missing = [key for key in keys if key not in secret.get("data", {})]
            if missing:
                raise BadInput(f"Secret {wish.secret} has no {', '.join(missing)}")
        has_strimzi = await self._cluster.knows(*mirrorobjects.STRIMZI)
        return mirrorobjects.objects(owner, wish, region, shown, has_strimzi)

    async def _prune(self, owner: Owner, keep: frozenset[tuple[str, str]]) -> None:
        """Before others are made: two would copy everything twice."""
        labels = mirrorobjects.selector_of(owner)
        for api, kind in mirrorobjects.KINDS:
            for each in await self._cluster.list(api, kind, owner.namespace, labels):
                metadata = each["metadata"]
                mine = any(one["uid"] == owner.uid for one in metadata.get("ownerReferences", ()))
                if mine and (kind, metadata["name"]) not in keep:
                    await self._cluster.delete(api, kind, owner.namespace, metadata["name"])

    async def _apply(self, wanted: list[Object], applied: Applied) -> Standing:
        found: Object | None = None  # what runs, which is the last one
        for each in wanted:
            kind, metadata = each["kind"], each["metadata"]
            namespace, name = metadata["namespace"], metadata["name"]
            found = await self._cluster.get(each["apiVersion"], kind, namespace, name)
            version = str(found["metadata"].get("resourceVersion", "")) if found else ""
            applied.changed(Name(kind, namespace, name), version)
            applied.saw(each, found)
        runs = f"{kind} {name}"
        try:
            await self._cluster.apply_all(wanted, applied)
        except Rejected as error:
            return Standing(runs, False, "Rejected", str(error))
        why = mirrorobjects.why_not_ready(found)
        message = f"{runs}: {why}" if why else runs
        return Standing(runs, not why, "NotReady" if why else "Ready", message)
