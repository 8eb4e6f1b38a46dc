"""The Kubernetes target: each part of the region is an IDC or Witness object, in the cluster and
namespace that its sites file says; the operator there makes it true. What is done to processes is
done by the API servers; all else goes by the deployment's endpoints, as on any other.

A call runs a loop of its own in a thread of its own: it is made from inside loops too.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

from kubernetes_asyncio.client import ApiClient, ApiException, Configuration
from kubernetes_asyncio.config import (
    ConfigException,
    load_incluster_config,
    new_client_from_config,
)

from imcore import pki
from imcore.errors import ImError
from imcore.region.load import load_region
from imcore.region.model import Region
from imcore.roles import Role
from imcore.runtime import Clock
from imctl import roles
from imctl.api.kinds import API_VERSION, IDC
from imctl.api.model import IdcSpec
from imctl.errors import Failed, Guarded
from imctl.reconcile.cluster import Cluster, Conflict, read
from imctl.reconcile.objects import DOWN_UNTIL
from imctl.reconcile.observed import Object
from imctl.target import blank, breaking, regions, runfile, sites
from imctl.target.base import Unit
from imctl.target.found import Found, found_of
from imctl.target.local import COPY, Local, last_line, pki_names
from imctl.target.places import Places
from imctl.target.runfile import RunFile
from imctl.target.sites import Sites

MANAGER = "imctl"
CALL_S = 5.0
TAKES_UP_S = 60.0  # the operator, a new region file
POD_S = 90.0  # a new pod, after the old one has had its time to end
POLL_S = 0.5
ENDS_MAX = 2  # an IDC that waits for others' registries may end once

T = TypeVar("T")


class Kubernetes(Local):
    starts_s = 300.0  # a node may have to fetch the image and a volume first
    on_pods = True
    faults_by = "not every IDC object says that it takes drills (spec.drills_from)"

    def __init__(self, region: Region, data: Path, run: RunFile, places: Places) -> None:
        super().__init__(region, data, run, places)
        self._sites = Sites.model_validate(run.sites)

    @classmethod
    def prepare_on(
        cls, region_file: Path, data: Path, sites_file: Path, clock: Clock
    ) -> Kubernetes:
        """Check that the region can run there, by a dry run of all its objects, and make its folder
        and certificates. Raises BadInput for the files; Guarded with all that the API servers have
        against it; Failed."""
        region = load_region(region_file)
        folder = data.absolute()
        roles.demand(folder / "pki", Role.ADMIN, "Starting a deployment")
        run = runfile.read(folder)
        if run is not None and not run.sites:
            raise Failed(f"{folder} is of another deployment; choose another with --data")
        try:
            found = sites.read(sites_file.read_text(), region, str(sites_file))
            folder.mkdir(parents=True, exist_ok=True)
            (folder / COPY).write_bytes(region_file.read_bytes())
            pki.init(folder / "pki", pki_names(region), pki.utc_now(clock.wall_ms()))
            run = RunFile(
                region=str(folder / COPY), faults=False, link_admin="", elsewhere=True,
                sites=found.model_dump(mode="json", exclude_defaults=True),
            )  # fmt: skip
            target = cls(region, folder, run, Places(folder))
            if refused := target.objections(target.own_region(), target.names()):
                raise Guarded("nothing was done: " + "; ".join(refused))
            run.write(folder)
        except OSError as error:
            raise Failed(f"{error.filename}: {error.strerror}") from error
        return target

    # ------------------------------------------------------------------------------ guards

    def demand_here(self, what: str) -> None:
        """Its processes are for imctl, by way of the operator."""

    def demand_files(self, what: str) -> None:
        raise Guarded(f"{what} is for deployments on this machine; `kubectl logs -f` follows a pod")

    def demand_destroyable(self) -> None:
        raise Guarded(
            "the volumes of its pods are the clusters': `imctl down`, then delete the namespaces "
            f"({', '.join(sorted({site.namespace for site in self._sites.sites.values()}))})"
        )

    def _never(self, what: str) -> Guarded:
        return Guarded(f"{what} is for deployments on this machine: its pods are a cluster's")

    def kill(self, name: str) -> None:
        raise self._never("Killing processes")

    def kill_role(self, name: str, role: str) -> list[str]:
        raise self._never("Killing processes")

    def terminate(self, name: str) -> None:
        raise self._never("Stopping processes")

    def pause(self, name: str) -> None:
        raise self._never("Breaking things on purpose")

    def resume(self, name: str) -> None:
        raise self._never("Breaking things on purpose")

    def wipe(self, name: str) -> None:
        raise self._never("Deleting data")

    def begin_kv(self, engine: str, pd: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        raise self._never("Moving its KV")

    # ------------------------------------------------------------------------------ looking

    def units(self) -> list[Unit]:
        """A part whose API server does not answer is "elsewhere": it may serve all the same."""
        states = dict.fromkeys(self.names(), "elsewhere")
        for names in self._by_context(self.names()):
            with contextlib.suppress(Failed):
                for name, found in self._looks(names).items():
                    states[name] = "running" if found.lives else "gone"
        return [Unit(name, state, 0) for name, state in states.items()]

    def region_of(self, name: str) -> str:
        """Of the pod, by its mark; without a pod, what the next one would have."""
        return self._named(self._look(name))

    def _named(self, found: Found) -> str:
        if not found.mark:
            return self.own_region()
        for path in sorted((self.data / regions.FOLDER).glob("*.yaml")):
            if sites.mark_of(regions.load(self.data, path.stem)) == found.mark:
                return path.stem
        raise Failed(
            f"somebody else gave {found.part} a region file that {self.data} does not know; "
            "deploy from the folder that has it"
        )

    def check_alive(self, names: Sequence[str]) -> None:
        for some in self._by_context(names):
            for name, found in self._looks(some).items():
                if found.ends > ENDS_MAX:
                    raise Failed(f"{name} ends again and again: {self.last_words(name)}")

    def log_file(self, name: str) -> Path:
        """What its pod has said until now. Raises Failed."""
        pod, site = f"{sites.workload(name, self.region)}-0", self._sites.sites[name]
        text = self._at(name, lambda cluster: cluster.log(site.namespace, pod))
        path = super().log_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def last_words(self, name: str) -> str:
        log = self.log_file(name)
        return f"{last_line(log) or self._look(name).trouble or 'it said nothing'} ({log})"

    def _look(self, name: str) -> Found:
        """Raises Failed when its API server does not answer."""
        return self._looks([name])[name]

    def _looks(self, names: Sequence[str]) -> dict[str, Found]:
        """Of parts in one context; over one connection, since it is done often. Raises Failed."""

        async def look(cluster: Cluster) -> dict[str, Found]:
            return {name: await self._found(cluster, name) for name in names}

        return self._at(names[0], look)

    async def _found(self, cluster: Cluster, name: str) -> Found:
        namespace, region = self._sites.sites[name].namespace, self.region
        kind, workload = sites.kind_of(name, region), sites.workload(name, region)
        own = await cluster.get(API_VERSION, kind, namespace, name)
        pod = await cluster.get("v1", "Pod", namespace, f"{workload}-0")
        made = await cluster.get("apps/v1", "StatefulSet", namespace, workload)
        return found_of(name, own, pod, made)

    def _by_context(self, names: Sequence[str]) -> list[list[str]]:
        grouped: dict[str, list[str]] = {}
        for name in names:
            grouped.setdefault(self._sites.sites[name].context, []).append(name)
        return list(grouped.values())

    # ---------------------------------------------------------------- breaking and mending

    @property
    def faults(self) -> bool:
        """Whether the objects of all its IDCs say that they take drills. Raises Failed."""
        return all(
            bool(self._idc_object(idc.name)["spec"].get("drills_from"))
            for idc in self.region.spec.idcs
        )

    def is_kept_down(self, name: str) -> bool:
        """Raises Failed."""
        if sites.is_witness(name, self.region):
            return False
        return DOWN_UNTIL in self._idc_object(name)["metadata"].get("annotations", {})

    def _idc_object(self, name: str) -> Object:
        """Raises Failed."""
        namespace = self._sites.sites[name].namespace

        async def look(cluster: Cluster) -> Object:
            found = await cluster.get(API_VERSION, IDC.name, namespace, name)
            if found is None:
                raise Failed(f"there is no IDC {name} in the namespace {namespace}")
            return found

        return self._at(name, look)

    def take_down(self, name: str, until: str) -> None:
        """Kill all that runs in the IDC's pod and in those of its gateways, and keep them down
        until ``let_up``, and until then (RFC 3339) at most. Raises Failed."""
        self._demand_breakable(name)
        namespace, own = self._sites.sites[name].namespace, sites.workload(name, self.region)
        marked = self._marked(name, {DOWN_UNTIL: until})
        self._at(name, lambda cluster: breaking.take_down(cluster, namespace, own, marked))

    def gateways_serve(self, name: str) -> bool:
        """Whether all that an IDC has in pods of their own are there. Raises Failed."""
        namespace = self._sites.sites[name].namespace
        return self._at(name, lambda cluster: breaking.gateways_serve(cluster, namespace, name))

    def delete_data(self, name: str) -> None:
        """Of an IDC that is kept down. Raises Failed."""
        self._demand_breakable(name)
        if not self.is_kept_down(name):
            raise Failed(f"{name} is not kept down: its data are in use")
        namespace, workload = self._sites.sites[name].namespace, sites.workload(name, self.region)
        spec = read(IdcSpec, self._idc_object(name)["spec"])
        wanted = blank.pod(name, namespace, workload, spec)
        self._at(name, lambda cluster: breaking.run_once(cluster, wanted))

    def let_up(self, name: str) -> None:
        """Returns once there is a pod. Raises Failed."""
        roles.demand(self.pki, Role.ADMIN, "Starting processes")
        # One that a drill has left would hold the volume.
        left = blank.name_of(sites.workload(name, self.region))
        self._at(name, _delete("v1", "Pod", self._sites.sites[name].namespace, left))
        self._at(name, _apply([self._marked(name, {})], breaking.MANAGER))
        self._until(name, "a pod", TAKES_UP_S, lambda found: found.lives)

    def _demand_breakable(self, name: str) -> None:
        roles.demand(self.pki, Role.ADMIN, "Breaking things on purpose")
        if sites.is_witness(name, self.region):
            raise Guarded(f"{name} is a witness: drills break IDCs only")
        if not self._idc_object(name)["spec"].get("drills_from"):
            raise Guarded(f"the IDC {name} takes no drills (spec.drills_from)")

    def _marked(self, name: str, annotations: dict[str, str]) -> Object:
        """Applied without a mark, the one that was there goes."""
        metadata = {"name": name, "namespace": self._sites.sites[name].namespace}
        return {
            "apiVersion": API_VERSION, "kind": IDC.name,
            "metadata": metadata | {"annotations": annotations},
        }  # fmt: skip

    # ------------------------------------------------------------------------- doing things

    def start(self, names: Sequence[str]) -> None:
        """Apply their objects; an operator makes the pods. Raises Failed, with what it waits for,
        when none comes."""
        self._demand_admin("Starting processes")
        for name in names:
            wanted = self._objects(name, self.region_named(self.region_of(name)))
            self._at(name, _apply(wanted))
        for name in names:
            self._until(name, "a pod", TAKES_UP_S, lambda found: found.lives)

    def stop(self) -> list[str]:
        """The IDC and Witness objects go, and with them what the operator made; volumes stay."""
        self._demand_admin("Stopping the deployment")
        for name in reversed(self.names()):
            namespace, kind = self._sites.sites[name].namespace, sites.kind_of(name, self.region)
            self._at(name, _delete(API_VERSION, kind, namespace, name))
        for name in self.names():
            self._until(name, "its end", POD_S, lambda found: not found.there)
        (self.data / runfile.NAME).unlink(missing_ok=True)
        return []

    def restart(self, name: str, region: str) -> None:
        """The pod with the region file of this name; done again it does no harm. Raises Failed."""
        self._demand_admin("Restarting processes")
        wanted = self.region_named(region)
        mark = sites.mark_of(wanted)
        site = self._sites.sites[name]
        self._at(name, _apply(self._objects(name, wanted)))
        self._until(name, "the operator's word", TAKES_UP_S, lambda found: found.next_mark == mark)
        if self._look(name).mark != mark:
            pod = f"{sites.workload(name, self.region)}-0"
            self._at(name, _delete("v1", "Pod", site.namespace, pod))
        self._until(
            name, "its new pod", POD_S, lambda found: found.lives and found.mark == mark
        )  # fmt: skip

    def objections(self, wanted: str, units: Sequence[str]) -> list[str]:
        """By a dry run of the API servers."""
        region, found = self.region_named(wanted), []
        for name in units:
            for each in self._objects(name, region):
                try:
                    self._at(name, _rehearse(each))
                except Failed as error:
                    found.append(f"{name}: {each['kind']} {each['metadata']['name']}: {error}")
                    break
        return found

    def _objects(self, name: str, region: Region) -> list[Object]:
        keys = {file: (self.pki / file).read_bytes() for file in sites.files(name)}
        return sites.objects(name, self._sites, region, keys)

    def _until(self, name: str, what: str, seconds: float, holds: Callable[[Found], bool]) -> None:
        deadline = time.monotonic() + seconds
        while not holds(found := self._look(name)):
            if time.monotonic() >= deadline:
                raise Failed(f"{name} waits for {what} {seconds:g} s already: {found.trouble}")
            time.sleep(POLL_S)

    def _at(self, name: str, work: Callable[[Cluster], Awaitable[T]]) -> T:
        """With the API server of this part. Raises Failed."""
        context = self._sites.sites[name].context

        async def run() -> T:
            async with await _client(context) as api:
                return await work(Cluster(api, lambda: CALL_S))

        try:
            with ThreadPoolExecutor(1) as thread:
                return thread.submit(lambda: asyncio.run(run())).result()
        except (ConfigException, OSError, ApiException) as error:
            raise Failed(f"the context {context or 'of now'} cannot be used: {error}") from error
        except Conflict as error:  # of an apply: there is no such place
            raise Failed(
                f"there is no namespace {self._sites.sites[name].namespace}, or it has not the "
                f"kinds of {API_VERSION} (charts/im-operator): {error}"
            ) from error
        except ImError as error:
            raise Failed(str(error)) from error


async def _client(context: str) -> ApiClient:
    """Of a kubeconfig; without one, inside a pod, as the pod's service account."""
    # $KUBECONFIG as it is now: the library reads it when it is loaded.
    file = os.environ.get("KUBECONFIG")
    if not file and not context and os.environ.get("KUBERNETES_SERVICE_HOST"):
        own = Configuration()
        load_incluster_config(client_configuration=own)  # type: ignore[no-untyped-call]
        return ApiClient(own)
    return await new_client_from_config(file, context or None, False)


def _rehearse(wanted: Object) -> Callable[[Cluster], Awaitable[None]]:
    return lambda cluster: cluster.rehearse(wanted, MANAGER)


def _apply(
    wanted: Sequence[Object], manager: str = MANAGER
) -> Callable[[Cluster], Awaitable[None]]:
    async def work(cluster: Cluster) -> None:
        for each in wanted:
            await cluster.apply(each, manager=manager)

    return work


def _delete(api: str, kind: str, namespace: str, name: str) -> Callable[[Cluster], Awaitable[None]]:
    return lambda cluster: cluster.delete(api, kind, namespace, name)
