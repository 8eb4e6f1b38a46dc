"""The Kubernetes target: each part of the region is an IDC or Witness object, in the cluster and
namespace that its sites file says; the operator there makes it true. What is done to processes is
done by the API servers; all else goes by the deployment's endpoints, as on any other.

A call runs a loop of its own in a thread of its own: it is made from inside loops too.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import yaml
from kubernetes_asyncio.client import ApiException
from kubernetes_asyncio.config import ConfigException

from imcore import pki
from imcore.errors import BadInput, ImError
from imcore.region.load import load_region
from imcore.region.model import Region
from imcore.roles import Role
from imcore.runtime import Clock
from imctl import roles
from imctl.api.kinds import API_VERSION, GATEWAY_CLUSTER, IDC, IM_CLUSTER, ROUTE_CLUSTER
from imctl.api.model import IdcSpec
from imctl.errors import Denied, Failed, Guarded
from imctl.plan.takes import Change
from imctl.reconcile.besideobjects import BESIDE, GATEWAY
from imctl.reconcile.cluster import Cluster, Conflict, Rejected, read
from imctl.reconcile.objects import DOWN_UNTIL
from imctl.reconcile.observed import Object
from imctl.reconcile.seen import down_until
from imctl.target import (
    blank,
    breaking,
    calls,
    corepods,
    regions,
    rehearsal,
    runfile,
    sitechanges,
    sitefiles,
    sites,
)
from imctl.target.base import FRONT, Place, Rolling, Unit
from imctl.target.found import MANAGER, Found, found_of, grace_s, ours, rolling_of
from imctl.target.local import COPY, Local, last_line, pki_names
from imctl.target.places import Places
from imctl.target.replacing import replacing
from imctl.target.runfile import RunFile
from imctl.target.sites import Sites

CALL_S = 5.0
TAKES_UP_S = 60.0  # the operator, a new region file
POD_S = 60.0  # a new pod or none, after the old one has had its time to end
POLL_S = 0.5
ENDS_MAX = 2  # an IDC that waits for others' registries may end once

T = TypeVar("T")


class Kubernetes(Local):
    starts_s = 300.0  # a node may have to fetch the image and a volume first
    on_pods = True
    faults_by = "not every IDC object says that it takes drills (spec.drills_from)"

    def __init__(self, region: Region, data: Path, run: RunFile, places: Places) -> None:
        super().__init__(region, data, run, places)
        self._sites = Sites.model_validate(yaml.safe_load(sitefiles.own_text(data, run)))

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
        text = _read(sites_file)
        try:
            found = sites.read(text.decode(), region, str(sites_file))
            _check_stays(folder, run, found)
            folder.mkdir(parents=True, exist_ok=True)
            pki.init(folder / "pki", pki_names(region), pki.utc_now(clock.wall_ms()))
            region_text = region_file.read_bytes()
            wanted = sitefiles.keep(folder, regions.keep(folder, region_text), text)
            run = RunFile(
                region=str(folder / COPY), faults=False, link_admin="", elsewhere=True,
                sites=found.model_dump(mode="json", exclude_defaults=True),
            )  # fmt: skip
            asked = cls(region, folder, run, Places(folder))
            if refused := asked.objections(wanted, asked.names()):
                raise Guarded("nothing was done: " + "; ".join(refused))
            # In this order: the sites file beside no run.json says that this is a deployment on
            # Kubernetes which is down.
            with replacing(folder / COPY) as new:
                new.write_bytes(region_text)
            run.write(folder)
            sitefiles.adopt(folder, text)
        except OSError as error:
            raise Failed(f"{error.filename}: {error.strerror}") from error
        return cls(region, folder, run, Places(folder))

    # ------------------------------------------------------------------------------ guards

    def demand_here(self, what: str) -> None:
        """Its processes are for imctl, by way of the operator."""

    def demand_files(self, what: str) -> None:
        raise Guarded(f"{what} is for deployments on this machine; `kubectl logs -f` follows a pod")

    def demand_destroyable(self) -> None:
        raise Guarded(f"{sitefiles.stays(self._sites)}: `imctl down` first")

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

    def restart_front(self, name: str, number: int) -> None:
        """By a command in its pod, for which its namespace has to allow `pods/exec`. Raises
        Failed."""
        roles.demand(self.pki, Role.ADMIN, "Restarting gateways")
        if not self.fronts_of(name):
            raise Failed(
                f"{name} runs all its roles in one process, or is not an IDC: `gateways` in the "
                "sites file runs them apart"
            )
        namespace, pod = self._sites.sites[name].namespace, f"{name}-{GATEWAY}-{number}"
        self._at(name, lambda cluster: calls.hang_up(cluster, namespace, pod))

    def begin_kv(self, engine: str, pd: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        raise self._never("Moving its KV")

    def end_kv(self, names: Sequence[str]) -> None:
        """Nor did it begin here."""

    # ------------------------------------------------------------------------------ looking

    def units(self) -> list[Unit]:
        """Parts, and gateways in pods of their own. A part whose API server does not answer is
        "elsewhere": it may serve all the same."""
        states = dict.fromkeys([*self.names(), *self.apart_names()], "elsewhere")
        for names in self._by_context(self.names()):
            with contextlib.suppress(Failed):
                for name, found in self._looks(names).items():
                    states[name] = "running" if found.lives else "gone"
                    states |= dict.fromkeys(self.fronts_of(name), "gone")
                    states |= {_front(name, pod): "running" for pod in found.gateways}
        return [Unit(name, state, 0) for name, state in states.items()]

    def trouble(self, name: str) -> str:
        return self._look(name).trouble

    def fronts_of(self, name: str) -> list[str]:
        """As many as the sites file says; an autoscaler may have added some."""
        if name not in self._sites.sites or self._sites.sites[name].gateways is None:
            return []
        spec = sites.gateways_of(name, self._sites, self.region)
        assert spec is not None
        count = spec.autoscaling.min if spec.autoscaling else spec.replicas
        return [f"{name}{FRONT}{number}" for number in range(1, count + 1)]

    def ipconfs_of(self, name: str) -> list[str]:
        """They are in the pod of their IDC."""
        return []

    def routes_of(self, name: str) -> list[str]:
        """They come and go as their RouteCluster says, and no gateway waits for one."""
        return []

    def rolling(self, name: str) -> Rolling | None:
        namespace = self._sites.sites[name].namespace
        workload = sites.workload(name, self.region)

        async def look(cluster: Cluster) -> Rolling | None:
            core: Object | None = None
            for kind, pods in BESIDE.items():
                own = await cluster.get(API_VERSION, kind, namespace, name)
                if own is None:
                    continue
                core = core or await cluster.get("apps/v1", "StatefulSet", namespace, workload)
                base = f"{name}-{pods.component}"
                made = await cluster.get("apps/v1", pods.workload, namespace, base)
                mark = found_of(name, None, None, core).next_mark
                if (rolling := rolling_of(own, made, mark)) is not None:
                    return rolling
            return None

        return None if sites.is_witness(name, self.region) else self._at(name, look)

    def region_of(self, name: str) -> str:
        """Of the pod, by its mark; without a pod, what the next one would have."""
        return self._named(self._look(name))

    def _named(self, found: Found) -> str:
        if not found.mark:
            return self.own_region()
        for path in sorted((self.data / regions.FOLDER).glob("*.yaml")):
            if sites.mark_of(regions.load(self.data, path.stem)) == found.mark:
                return path.stem
        raise Denied(
            f"somebody else gave {found.part} a region file that {self.data} does not know; "
            "deploy from the folder that has it"
        )

    def check_alive(self, names: Sequence[str]) -> None:
        parts = [name for name in names if name in self._sites.sites]  # a gateway is its operator's
        for some in self._by_context(parts):
            for name, found in self._looks(some).items():
                if found.ends > ENDS_MAX:
                    raise Failed(f"{name} ends again and again: {self.last_words(name)}")

    def log_file(self, name: str) -> Path:
        """What its pod has said until now. Raises Failed."""
        part, _, number = name.partition(FRONT)
        pod = f"{part}-{GATEWAY}-{number}" if number else f"{sites.workload(part, self.region)}-0"
        namespace = self._sites.sites[part].namespace
        text = self._at(part, lambda cluster: cluster.log(namespace, pod))
        path = super().log_file(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return path

    def last_words(self, name: str) -> str:
        trouble = "" if FRONT in name else self._look(name).trouble
        try:
            log = self.log_file(name)
        except Failed as error:  # what is known of it is worth no less
            return f"{trouble or 'it said nothing'} (no log of it: {error})"
        return f"{last_line(log) or trouble or 'it said nothing'} ({log})"

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
        fronts: list[Object] = []
        if self._sites.sites[name].gateways is not None:
            fronts = await cluster.list("v1", "Pod", namespace, _pods_of(GATEWAY, name))
        return found_of(name, own, pod, made, fronts)

    def _by_context(self, names: Sequence[str]) -> list[list[str]]:
        grouped: dict[str, list[str]] = {}
        for name in names:
            grouped.setdefault(self._sites.sites[name].context, []).append(name)
        return list(grouped.values())

    def place_of(self, part: str) -> Place:
        site = self._sites.sites[part]
        return Place(site.context, site.namespace)

    def drilled_from(self) -> dict[str, list[str]]:
        """Of each IDC, as the sites file says it: from which namespaces it takes drills."""
        found = {}
        for idc in self.region.spec.idcs:
            spec = sites.spec_of(idc.name, self._sites, self.region)
            found[idc.name] = list(spec.drills_from) if isinstance(spec, IdcSpec) else []
        return found

    # ---------------------------------------------------------------- breaking and mending

    @property
    def faults(self) -> bool:
        """Whether the objects of all its IDCs say that they take drills. Raises Failed."""
        return all(
            bool(self._idc_object(idc.name)["spec"].get("drills_from"))
            for idc in self.region.spec.idcs
        )

    def is_kept_down(self, name: str, now: str) -> bool:
        """As the operator sees it. ``now``: RFC 3339. Raises Failed."""
        if sites.is_witness(name, self.region):
            return False
        return bool(down_until(self._idc_object(name), now))

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
        """Kill all that runs in the IDC's pod and in those beside it, and keep them down until
        ``let_up``, and until then (RFC 3339) at most. Raises Failed."""
        self._demand_breakable(name)
        namespace, own = self._sites.sites[name].namespace, sites.workload(name, self.region)
        marked = self._marked(name, {DOWN_UNTIL: until})
        self._at(name, lambda cluster: breaking.take_down(cluster, namespace, own, marked))

    def gateways_serve(self, name: str) -> bool:
        """Whether all that an IDC has in pods of their own are there. Raises Failed."""
        namespace = self._sites.sites[name].namespace
        return self._at(name, lambda cluster: breaking.all_serve(cluster, namespace, name))

    def delete_data(self, name: str, now: str) -> None:
        """Of an IDC that is kept down. ``now``: RFC 3339. Raises Failed."""
        self._demand_breakable(name)
        own = self._idc_object(name)
        if not (until := down_until(own, now)):
            raise Failed(f"{name} is not kept down: its data are in use")
        namespace, workload = self._sites.sites[name].namespace, sites.workload(name, self.region)
        wanted = blank.pod(name, namespace, workload, read(IdcSpec, own["spec"]), until)
        self._at(name, lambda cluster: breaking.run_once(cluster, wanted))

    def let_up(self, name: str) -> None:
        """Returns once there is a pod. Raises Failed."""
        roles.demand(self.pki, Role.ADMIN, "Starting processes")
        # One that a drill has left would hold the volume, and goes on deleting until it is gone.
        left = blank.name_of(sites.workload(name, self.region))
        namespace = self._sites.sites[name].namespace
        self._at(name, lambda cluster: breaking.end(cluster, namespace, left))
        self._at(name, calls.apply([self._marked(name, {})], breaking.MANAGER))
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
        """Apply their objects; operators make the pods. Raises Failed, with what it waits for, when
        none comes."""
        self._demand_admin("Starting processes")
        for name in names:
            region = self.region_named(self.region_of(name))
            beside = sites.beside(name, self._sites, region)
            self._at(name, calls.apply([*self._objects(name, region, self._sites), *beside]))
        for name in names:
            self._until(name, "a pod", TAKES_UP_S, lambda found: found.lives)

    def stop(self) -> list[str]:
        """The IDC and Witness objects go, after what stands beside them, and with them what the
        operator made; volumes stay. Nobody is drained: the last IDC has nobody to give its clients
        to."""
        self._demand_admin("Stopping the deployment")
        ending: list[tuple[str, str]] = []
        given_s = {name: self._look(name).grace_s for name in self.names()}
        for name in reversed(self.names()):
            namespace, kind = self._sites.sites[name].namespace, sites.kind_of(name, self.region)
            # Whatever the sites file says: an unfinished deploy may have added some.
            beside = () if sites.is_witness(name, self.region) else BESIDE
            ending += [(name, each) for each in beside if self._end(name, each)]
            self._at(name, calls.end(kind, namespace, name))
        for name, each in ending:
            self._wait_for_end(name, each)
        for name in self.names():
            self._until(name, "its end", POD_S + given_s[name], lambda found: not found.there)
        if sitefiles.kept(self.data) is None:  # of an earlier `imctl`: run.json alone has it
            sitefiles.adopt(self.data, self._own_sites())
        (self.data / runfile.NAME).unlink(missing_ok=True)
        return []

    def restart(self, name: str, region: str) -> None:
        """The pod with what is wanted; done again it does no harm. Its gateways follow (``apply``):
        those that are not wanted any more are gone before it listens in their place. Raises
        Failed."""
        self._demand_admin("Restarting processes")
        wanted, placed = self.region_named(region), self._sites_named(region)
        mark = sites.mark_of(wanted)
        namespace = placed.sites[name].namespace
        site = placed.sites[name]
        for kind, given in ((GATEWAY_CLUSTER, site.gateways), (IM_CLUSTER, site.cores)):
            none = given is None and not sites.is_witness(name, wanted)
            if none and self._end(name, kind.name):
                self._wait_for_end(name, kind.name)
        self._at(name, calls.apply(self._objects(name, wanted, placed)))
        self._until(name, "the operator's word", TAKES_UP_S, lambda f: f.taken_up(mark))
        self._renew_cores(name, placed, wanted)  # else one with former settings would take over
        found = self._look(name)
        if not found.is_new:
            pod = f"{sites.workload(name, self.region)}-0"
            self._at(name, calls.delete("v1", "Pod", namespace, pod))
        self._until(name, "its new pod", POD_S + found.grace_s, lambda f: f.lives and f.is_new)

    def apply(self, name: str, wanted: str) -> None:
        """All but the region file, which has come with its pod."""
        self._demand_admin("Changing what it runs on")
        region, placed = self.region_named(self.region_of(name)), self._sites_named(wanted)
        beside = sites.beside(name, placed, region)
        self._at(name, calls.apply([*self._objects(name, region, placed), *beside]))
        if placed.sites[name].routes is None and not sites.is_witness(name, region):
            self._end(name, ROUTE_CLUSTER.name)  # its gateways link to the core by themselves
        if not sites.spec_of(name, placed, region).paused:  # else it says nothing
            mark = sites.mark_of(region)
            self._until(name, "the operator's word", TAKES_UP_S, lambda f: f.taken_up(mark))
        self._renew_cores(name, placed, region)

    def _renew_cores(self, name: str, placed: Sites, region: Region) -> None:
        """Whoever has applied their IMCluster: by nobody else they are replaced."""
        namespace, spec = placed.sites[name].namespace, sites.spec_of(name, placed, region)
        if isinstance(spec, IdcSpec) and spec.cores == "shared" and not spec.paused:
            self._at(name, lambda cluster: corepods.renew(cluster, namespace, name))

    def _end(self, name: str, kind: str) -> bool:
        """Delete what `imctl` has applied of this kind beside an IDC; somebody else's stays.
        Returns whether its pods have to go: also those of one that an earlier try has deleted."""
        namespace = self._sites.sites[name].namespace

        async def work(cluster: Cluster) -> bool:
            own = await cluster.get(API_VERSION, kind, namespace, name)
            if own is not None and not ours(own):
                return False
            if own is not None:
                await cluster.delete(API_VERSION, kind, namespace, name)
            return True

        return self._at(name, work)

    def _wait_for_end(self, name: str, kind: str) -> None:
        """Of the pods of what was deleted."""
        namespace, labels = (
            self._sites.sites[name].namespace,
            _pods_of(BESIDE[kind].component, name),
        )

        async def work(cluster: Cluster) -> None:
            began, allowed_s = time.monotonic(), POD_S
            while pods := await cluster.list("v1", "Pod", namespace, labels):
                allowed_s = max(allowed_s, POD_S + grace_s(pods))
                if time.monotonic() > began + allowed_s:
                    raise Failed(f"the {sitechanges.FIELDS[kind]} of {name} do not end")
                await asyncio.sleep(POLL_S)

        self._at(name, work)

    # ----------------------------------------------------------- from one file to another

    def look_again(self) -> None:
        super().look_again()
        self._sites = Sites.model_validate(yaml.safe_load(self._own_sites()))

    def _own_sites(self) -> bytes:
        return sitefiles.own_text(self.data, self._run)

    def _sites_named(self, wanted: str) -> Sites:
        return sitefiles.load(self.data, wanted, self._run)

    def own_region(self) -> str:
        return sitefiles.keep(self.data, super().own_region(), self._own_sites())

    def keep_wanted(self, region_file: Path, sites_file: Path | None = None) -> str:
        region = super().keep_wanted(region_file)
        text = self._own_sites() if sites_file is None else _read(sites_file)
        return self._kept(region, text, str(sites_file or self.data / runfile.SITES))

    def keep_changed(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
        region, own = super().keep_changed(change), self.data / runfile.SITES
        return self._kept(region, self._own_sites(), str(own))

    def _kept(self, name: str, text: bytes, shown: str) -> str:
        """With a sites file, which has to fit the region file. Other parts than are there now are
        for the plan to refuse. Raises BadInput."""
        region = self.region_named(name)
        if text != self._own_sites() or set(sites.parts(region)) == set(self._sites.sites):
            sites.read(text.decode(), region, shown)
        return sitefiles.keep(self.data, name, text)

    def adopt(self, region: str) -> None:
        text = sitefiles.text_of(self.data, region, self._run)
        super().adopt(region)
        sitefiles.adopt(self.data, text)
        self._sites = self._sites_named(region)

    def site_changes(self, wanted: str, names: Sequence[str]) -> list[Change]:
        """By a dry run of the API servers. Raises Failed."""
        region, placed = self.region_named(wanted), self._sites_named(wanted)
        if changes := sitechanges.moved(self._sites, placed):
            return changes
        if set(sites.parts(region)) != set(placed.sites):  # which the region's plan says
            return []
        found: list[Change] = []
        for some in self._by_context(names):

            async def look(cluster: Cluster, some: Sequence[str] = some) -> None:
                for name in some:
                    outdated = (await self._found(cluster, name)).outdated
                    found.extend(await rehearsal.changes(cluster, name, placed, region, outdated))

            self._at(some[0], look)
        return found

    def objections(self, wanted: str, units: Sequence[str]) -> list[str]:
        """By a dry run of the API servers."""
        region, placed, found = self.region_named(wanted), self._sites_named(wanted), []
        for name in units if set(sites.parts(region)) == set(placed.sites) else ():
            asked = [*self._objects(name, region, placed), *sites.beside(name, placed, region)]
            said = [f"{each['kind']} {each['metadata']['name']}" for each in asked]
            done: list[str] = []  # the next one is what an error is about

            async def rehearse(
                cluster: Cluster, asked: list[Object] = asked, done: list[str] = done
            ) -> None:
                for each in asked:
                    await cluster.rehearse(each, MANAGER)
                    done.append("")

            try:
                self._at(name, rehearse)
            except Failed as error:
                found.append(f"{name}: {said[len(done)]}: {error}")
        return found

    def _objects(self, name: str, region: Region, placed: Sites) -> list[Object]:
        keys = {file: (self.pki / file).read_bytes() for file in sites.files(name)}
        return sites.objects(name, placed, region, keys)

    def _until(self, name: str, what: str, seconds: float, holds: Callable[[Found], bool]) -> None:
        deadline = time.monotonic() + seconds
        while not holds(found := self._look(name)):
            if time.monotonic() >= deadline:
                raise Failed(f"{name} waits for {what} {seconds:g} s already: {found.trouble}")
            time.sleep(POLL_S)

    def _at(self, name: str, work: Callable[[Cluster], Awaitable[T]]) -> T:
        """With the API server of this part. Raises Failed; Denied for its refusal."""
        context = self._sites.sites[name].context

        async def run() -> T:
            async with await calls.client(context) as api:
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
        except Rejected as error:
            raise Denied(str(error)) from error
        except ImError as error:
            raise Failed(str(error)) from error


def _read(sites_file: Path) -> bytes:
    """Raises BadInput."""
    try:
        return sites_file.read_bytes()
    except OSError as error:
        raise BadInput(f"{sites_file}: expected a sites file, got {error.strerror}") from error


def _check_stays(folder: Path, run: RunFile | None, found: Sites) -> None:
    """Raises Guarded for one that was started at other places before: it may be down, and its
    volumes are there."""
    earlier = sitefiles.own_text(folder, run) if run else sitefiles.kept(folder)
    if earlier is None:
        return
    if changes := sitechanges.moved(Sites.model_validate(yaml.safe_load(earlier)), found):
        said = "; ".join(f"{each.difference.field}: {each.reason}" for each in changes)
        raise Guarded(
            f"nothing was done: {said}; one that begins there with nothing is another deployment: "
            "choose another --data"
        )


def _pods_of(component: str, part: str) -> str:
    """Their labels."""
    return f"app.kubernetes.io/component={component},app.kubernetes.io/instance={part}"


def _front(part: str, pod: str) -> str:
    return f"{part}{FRONT}{pod.rpartition('-')[2]}"
