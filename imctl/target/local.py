"""The local target: one process for each IDC, a link proxy between them, perhaps a witness. Split,
an IDC is its core, under the IDC's name, one front for each gateway (``fra.gateway-1``), where the
region file has `ipconfs` as many of them (``fra.ipconf-1``), perhaps some route instances
(``fra.route-1``), and perhaps a second core that stands by (``fra.standby``). When that one takes
over, the IDC's name is its name: which of the two serves is written in their data folder.

Each child leads a session of its own: Ctrl-C at the terminal reaches `imctl` alone, which decides.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from imcore import logs, pki
from imcore.errors import BadInput
from imcore.region.load import check_text, load_region
from imcore.region.model import Region
from imcore.region.problem import dotted
from imcore.region.rules import listeners
from imcore.roles import Role
from imcore.runtime import Clock
from imctl import audit, roles
from imctl.engines import binaries
from imctl.errors import Denied, Failed, Guarded
from imctl.plan.takes import Change
from imctl.target import beside, process, regions, runfile
from imctl.target import engines as wanted
from imctl.target.base import FRONT, IPCONF, ROUTE, STANDBY, Rolling, Unit, idc_of
from imctl.target.beside import Beside, EngineUnit
from imctl.target.places import Places
from imctl.target.process import Identity
from imctl.target.replacing import replacing
from imctl.target.runfile import RunFile
from services.core_lock import serving_pid, waiting_pid

LINKPROXY = "linkproxy"
COPY = "region.yaml"  # the deployment's own
FRONT_ROLES = "gateway,state"
IPCONF_ROLES = "ipconf"
ROUTE_ROLES = "route"
CORE_ROLES = "im,route,ipconf,control"
CORE_ALONE_ROLES = "im,route,control"
LINKPROXY_START_S = 15.0
STOP_GRACE_S = 5.0
REAP_S = 5.0


def default_data(region: Region) -> Path:
    return Path("var") / region.metadata.name


class Local:
    """A deployment on this machine, whose files lie in ``data``. ``starts_s``: what its IDCs may
    take to start."""

    starts_s = 60.0
    on_pods = False  # its processes are pods of clusters
    faults_by = "the deployment was not started with `up --faults`"  # said where it takes none

    def __init__(self, region: Region, data: Path, run: RunFile, places: Places) -> None:
        self.region = region
        self.data = data
        self.pki = data / "pki"
        self._run = run
        self._read = run.copy()
        self._places = places
        self._beside = self._look_beside()
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self._regions: dict[str, Region] = {}
        self._name_cores()

    # ------------------------------------------------------------------- making and finding

    @classmethod
    def prepare(
        cls,
        region_file: Path,
        data: Path | None,
        faults: bool,
        clock: Clock,
        engines: Sequence[str] = (),
        split: bool = False,
        standby: bool = False,
        routes: int = 0,
    ) -> Local:
        """Check that the region can run here and make its folder and certificates. ``engines``:
        which ones run beside the IDCs. ``standby``, ``routes``: only with ``split``. Raises
        BadInput for the file, Failed for this machine."""
        region = load_region(region_file)
        if lacking := binaries.missing(wanted.programs(engines)):
            raise Failed(lacking)
        folder = (data or default_data(region)).absolute()
        roles.demand(folder / "pki", Role.ADMIN, "Starting a deployment")
        _check_not_running(folder)
        copy = folder / COPY
        text = region_file.read_bytes()
        check_ports(region)  # before anything is written
        try:
            folder.mkdir(parents=True, exist_ok=True)
            places = Places(folder, (port for _, _, port in listeners(region)))
            if engines:
                pki_folder = folder / "pki"
                text = wanted.with_engines(
                    text.decode(), region, pki_folder, engines, places
                ).encode()
            with replacing(copy) as chosen:
                chosen.write_bytes(text)
                region = load_region(chosen)
                wanted.check_same(folder, region)
        except OSError as error:
            raise Failed(
                f"cannot write in {folder}: {error.strerror}; choose another folder with --data"
            ) from error
        names = pki_names(region) | wanted.certificates(region, engines)
        pki.init(folder / "pki", names, pki.utc_now(clock.wall_ms()))
        run = RunFile(
            region=str(copy),
            faults=faults,
            link_admin=places.unnamed(),
            engines=list(engines),
            split=split,
            standby=standby,
            routes=routes,
        )
        target = cls(region, folder, run, places)
        target.check_names()
        places.write()
        run.write(folder)  # before the first process: whoever finds one knows what it belongs to
        return target

    @classmethod
    def attach(cls, region_file: Path, folder: Path) -> Local:
        """The deployment of this region file, whose processes somebody else runs. Its pki lies in
        the folder already. Raises BadInput, Failed."""
        region = load_region(region_file)
        folder = folder.absolute()
        run = runfile.read(folder)
        if run is not None and not run.elsewhere:
            raise Failed(f"{folder} is of a deployment on this machine; choose another with --data")
        if run is None and any((folder / idc.name / "data").exists() for idc in region.spec.idcs):
            raise Failed(
                f"{folder} has data of a deployment on this machine, which is down; choose another "
                "with --data"
            )
        pki.show(folder / "pki")
        copy = folder / COPY
        try:
            with replacing(copy) as new:
                new.write_bytes(region_file.read_bytes())
            run = RunFile(region=str(copy), faults=False, link_admin="", elsewhere=True)
            run.write(folder)
        except OSError as error:
            raise Failed(f"cannot write in {folder}: {error.strerror}") from error
        return cls(region, folder, run, Places(folder))

    @classmethod
    def open(cls, folder: Path) -> Local:
        """The deployment that was started in this folder. Raises Failed."""
        run = runfile.read(folder)
        if run is None:
            raise Failed(f"no deployment found in {folder}; start one with `imctl up FILE`")
        return cls(load_region(Path(run.region)), folder.absolute(), run, Places(folder.absolute()))

    def look_again(self) -> None:
        """For what another `imctl` has changed meanwhile. Raises Denied when it has taken the
        deployment down, Failed."""
        if runfile.read(self.data) is None:
            raise Denied(f"the deployment in {self.data} is down; somebody stopped it meanwhile")
        now = Local.open(self.data)
        self.region, self._run, self._read, self._places, self._beside = (
            now.region, now._run, now._read, now._places, now._beside,
        )  # fmt: skip

    def _write_run(self) -> None:
        """With what other commands have written meanwhile: a unit that one of them has started
        would be nobody's."""
        self._run.write_over(self._read, self.data)
        self._read = self._run.copy()

    # ---------------------------------------------------------------------------- starting

    def check_names(self) -> None:
        """Raises BadInput when an IDC has the name that an engine's unit has."""
        for name in set(self.engine_names()) & set(self.names()):
            raise BadInput(f"an IDC is named {name}, as an engine of {self.engine(name).idc} is")

    def _look_beside(self) -> Beside:
        run = self._run
        return Beside(
            self.region, self.data, self.pki, run.engines, self._places, run.tikv_elsewhere
        )

    def engine_names(self) -> list[str]:
        """The units that are engines of an IDC, in the order of starting: all but a MirrorMaker
        start before it, and they share its faults."""
        return self._beside.names

    def engine(self, name: str) -> EngineUnit:
        return self._beside[name]

    def everything(self) -> list[str]:
        return [*self.engine_names(), *self.names(), *self.apart_names()]

    @property
    def split(self) -> bool:
        return self._run.split

    def fronts_of(self, name: str) -> list[str]:
        """The fronts of an IDC, which run beside its core; none when all its roles are in one
        process, or when it is no IDC. As many as the file says that it was started with: while a
        rollout is under way that is not always the deployment's own."""
        if not self.split or name not in {idc.name for idc in self.region.spec.idcs}:
            return []
        count = self._started_with(name).idc(name).gateways
        return [f"{name}{FRONT}{number}" for number in range(1, count + 1)]

    def ipconfs_of(self, name: str) -> list[str]:
        """Likewise, its ipconfs; none when ipconf runs in its core."""
        if not self.split or name not in {idc.name for idc in self.region.spec.idcs}:
            return []
        count = self._started_with(name).idc(name).ipconfs
        return [f"{name}{IPCONF}{number}" for number in range(1, count + 1)]

    def routes_of(self, name: str) -> list[str]:
        """The route instances of an IDC, if it has some."""
        count = self._run.routes if self.fronts_of(name) else 0
        return [f"{name}{ROUTE}{number}" for number in range(1, count + 1)]

    def apart_of(self, name: str) -> list[str]:
        """All processes that an IDC has beside its core."""
        return [*self.routes_of(name), *self.fronts_of(name), *self.ipconfs_of(name)]

    def _started_with(self, name: str) -> Region:
        known = self._run.regions.get(name)
        if known is None:
            return self.region
        if known not in self._regions:  # a file of that name never changes
            self._regions[known] = self.region_named(known)
        return self._regions[known]

    def apart_names(self) -> list[str]:
        return [unit for idc in self.region.spec.idcs for unit in self.apart_of(idc.name)]

    def standby_of(self, name: str) -> list[str]:
        """The second core of an IDC, if it has one."""
        return [name + STANDBY] if self._run.standby and self.fronts_of(name) else []

    def standby_names(self) -> list[str]:
        return [one for idc in self.region.spec.idcs for one in self.standby_of(idc.name)]

    def ours(self, name: str) -> list[str]:
        """What a unit of ours is made of: the core comes first."""
        return [name, *self.standby_of(name), *self.apart_of(name)]

    def _name_cores(self) -> None:
        """The core that serves has the IDC's name, also when it stood by before."""
        for other in self.standby_names():
            name = idc_of(other)
            if self._state(other) == "gone":
                continue
            serves = serving_pid(self.data / name / "data")
            if self._state(name) == "gone" or self._run.processes[other].pid == serves:
                _swap(self._run.processes, name, other)
                _swap(self._children, name, other)

    def names(self) -> list[str]:
        """Every unit of ours, in the order of starting: the link proxy first."""
        names = [LINKPROXY] if self._linked() else []
        if self.region.spec.witness:
            names.append(self.region.spec.witness.name)
        return names + [idc.name for idc in self.region.spec.idcs]

    def _demand_admin(self, what: str) -> None:
        """What is done to processes and files asks no server. Raises Refused, Guarded."""
        self.demand_here(what)
        roles.demand(self.pki, Role.ADMIN, what)

    def demand_here(self, what: str) -> None:
        """Raises Guarded. ``what``: the subject of the sentence."""
        if self._run.elsewhere:
            raise Guarded(
                f"{what} is not possible: {self.region.metadata.name} was attached, and something "
                "else runs its processes"
            )

    def demand_files(self, what: str) -> None:
        """Raises Guarded where the logs are no files that grow here."""

    def demand_destroyable(self) -> None:
        """Raises Guarded where its data do not lie in its folder."""
        self.demand_here("Destroying it")

    def start(self, names: Sequence[str]) -> None:
        self._demand_admin("Starting processes")
        self.find_lost()
        for name in names:
            if all(self._state(one) != "gone" for one in self.ours(name)):
                raise Failed(f"{name} is running already (pid {self._run.processes[name].pid})")
        for name in names:
            for stage in range(3):
                engines = [one.name for one in self._beside.of(name) if one.stage == stage]
                for engine in engines:
                    if self._state(engine) == "gone":
                        self._spawn(engine)
                for engine in engines:
                    self._wait_for_engine(engine)
            for one in self.ours(name):
                if self._state(one) == "gone":
                    self._spawn(one)
            if name == LINKPROXY:
                self._wait_for_links()

    def find_lost(self) -> None:
        """Take in processes of ours that an `imctl` started and did not live to write down."""
        if self._run.elsewhere:
            return
        ours = [*self.names(), *self.standby_names(), *self.apart_names(), *self.engine_names()]
        lost = {name: self._marks(name) for name in ours if self._state(name) == "gone"}
        running = [one for one in self._run.processes.values() if process.state(one) != "gone"]
        found = process.find(lost, {one.pid for one in running})
        for name, (identity, arguments) in found.items():
            self._run.processes[name] = identity
            if "--region" in arguments and name in self.names():
                told = Path(arguments[arguments.index("--region") + 1])
                if told.parent == self.data / regions.FOLDER:
                    self._run.regions[name] = told.stem
        if found:
            self._write_run()
        self._name_cores()

    def _marks(self, name: str) -> list[str]:
        """By which a process of this unit is known: what it runs, and on whose data."""
        if name == LINKPROXY:
            return ["services.linkproxy", str(self._links_file())]
        if name in self.engine_names():
            return list(self._beside[name].marks)
        witness = self.region.spec.witness
        module = "services.witness" if witness and name == witness.name else "services.node"
        return [module, str(self.data / name.removesuffix(STANDBY) / "data")]

    def prepare_engine(self, name: str) -> None:
        """Its files, and the format of its data where they are new; done before each start, and
        for several engines at once when somebody asks for it earlier. Raises Failed."""
        self._beside[name].prepare()

    def _spawn(self, name: str) -> None:
        if name in self.engine_names():
            self.prepare_engine(name)
        command = self._command(name)
        with process.uninterrupted():
            self._spawn_and_note(name, command)

    def _spawn_and_note(self, name: str, command: list[str]) -> None:
        self.log_file(name).parent.mkdir(parents=True, exist_ok=True)
        with self.log_file(name).open("ab") as log:
            child = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        identity = process.identify(child.pid)
        self._children[name] = child
        if identity is None:
            raise self._died(name)
        self._run.processes[name] = identity
        if "--region" in command and name != LINKPROXY and name in self.names():
            told = Path(command[command.index("--region") + 1])
            self._run.regions[name] = told.stem
        self._write_run()

    def _command(self, name: str) -> list[str]:
        common = ["--pki", str(self.pki)]
        faults = ["--faults"] if self._run.faults else []
        if name == LINKPROXY:
            common += ["--region", self._run.region]
            listen = ["--admin", self._run.link_admin, "--listen", str(self._links_file())]
            routes = self._write_routes()
            return [sys.executable, "-m", "services.linkproxy", *common, *listen, *routes, *faults]
        if name in self.engine_names():
            return self._beside[name].command()
        name = name.removesuffix(STANDBY)  # two equal cores: who serves is settled between them
        idc_name = idc_of(name)
        common += ["--region", str(regions.path_of(self.data, self.region_of(idc_name)))]
        # The audit log outlives the data: `imctl wipe` leaves it.
        data = ["--data", str(self.data / name / "data")]
        data += ["--audit", str(self.data / name / audit.FILE)]
        links = ["--links", str(self._write_links(name))] if self._linked() else []
        if idc_name != name:
            told = ["--idc", idc_name, *data, "--instance", name.rpartition("-")[2]]
            if FRONT in name:
                told += ["--roles", FRONT_ROLES]
            elif ROUTE in name:
                port = self._places.unnamed().rpartition(":")[2]
                told += ["--roles", ROUTE_ROLES, "--route-port", port]
                told += ["--advertise", f"127.0.0.1:{port}", "--listen", "127.0.0.1"]
            else:  # of all these it alone dials others than its own IDC
                told += ["--roles", IPCONF_ROLES, *links]
            return [sys.executable, "-m", "services.node", *common, *told]
        witness = self.region.spec.witness
        if witness and name == witness.name:
            return [sys.executable, "-m", "services.witness", *common, *data, *links]
        idc = ["--idc", self.region.idc(name).name]
        if self.split:
            idc += ["--roles", CORE_ALONE_ROLES if self.ipconfs_of(name) else CORE_ROLES]
            idc += ["--standby"] if self._run.standby else []
        return [sys.executable, "-m", "services.node", *common, *idc, *data, *links, *faults]

    def _linked(self) -> bool:
        return not self._run.elsewhere and len(self.region.spec.idcs) > 1

    def _write_routes(self) -> list[str]:
        """Where MirrorMakers reach the brokers of other IDCs: over the links, like everybody."""
        if wanted.KAFKA not in self._run.engines:
            return []
        path = self.data / "routes.json"
        path.write_text(json.dumps(wanted.routes(self.region, self._places), indent=1) + "\n")
        return ["--routes", str(path)]

    def _links_file(self) -> Path:
        return self.data / "links.json"

    def _write_links(self, name: str) -> Path:
        """Which addresses this unit dials to reach the others."""
        addresses = json.loads(self._links_file().read_text())[idc_of(name)]
        path = self.data / name / "links.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(addresses) + "\n")
        return path

    def _wait_for_links(self) -> None:
        """The proxy writes its addresses when it listens. They may be there from an earlier run,
        so its admin port is what tells."""
        host, port = self._run.link_admin.split(":")
        deadline = time.monotonic() + LINKPROXY_START_S
        while time.monotonic() < deadline:
            self.check_alive([LINKPROXY])
            with contextlib.suppress(OSError), socket.create_connection((host, int(port)), 1):
                if self._links_file().exists():
                    return
            time.sleep(0.05)
        raise Failed(f"the link proxy does not answer; see {self.log_file(LINKPROXY)}")

    def _engines_of(self, name: str) -> list[str]:
        return [one.name for one in self._beside.of(name)]

    def gateways_serve(self, name: str) -> bool:
        """Whether all that an IDC has in pods of their own are ready. Raises Failed."""
        return True

    def age_s(self, name: str) -> float:
        """Of a unit that runs: how long it has."""
        return process.age_s(self._run.processes[name])

    def engine_serves(self, name: str) -> bool:
        """Raises Failed when it has ended."""
        self.check_alive([name])
        return self._beside[name].healthy()

    def _wait_for_engine(self, name: str) -> None:
        limit_s = self._beside[name].starts_s
        deadline = time.monotonic() + limit_s
        while not self.engine_serves(name):
            if time.monotonic() >= deadline:
                raise Failed(
                    f"{name} did not serve within {limit_s:g} s; see {self.log_file(name)}"
                )
            time.sleep(0.05)

    # ------------------------------------------------------------ from one region file to another

    def region_of(self, name: str) -> str:
        """By its name, the region file that this unit was started with, and starts with again."""
        return self._run.regions.get(name) or self.own_region()

    def own_region(self) -> str:
        """By its name, the deployment's own copy."""
        return regions.keep(self.data, Path(self._run.region).read_bytes())

    def pin_regions(self) -> None:
        """Write down what each unit was started with, before the deployment's own changes."""
        for name in self.names():
            if name != LINKPROXY:
                self._run.regions.setdefault(name, self.own_region())
        self._write_run()

    def region_named(self, name: str) -> Region:
        """Raises BadInput."""
        return regions.load(self.data, name)

    def keep_wanted(self, region_file: Path, sites_file: Path | None = None) -> str:
        """Its name, with the engines that run beside the IDCs as they are. Raises BadInput; Guarded
        for a sites file, which only deployments on Kubernetes have."""
        if sites_file is not None:
            raise Guarded("--sites: expected it only for a deployment on Kubernetes")
        region = load_region(region_file)
        text = region_file.read_bytes()
        if self._run.engines:
            here = [engine for engine in self._run.engines if engine != wanted.TIKV]
            with_them = wanted.with_engines(text.decode(), region, self.pki, here, self._places)
            text = wanted.with_kv(with_them, self._kv_as_it_is(region)).encode()
        name = regions.keep(self.data, text)
        regions.load(self.data, name)
        return name

    def keep_changed(self, change: Callable[[dict[str, Any]], dict[str, Any]]) -> str:
        """The name of the deployment's own file, changed. Raises BadInput when it is none then."""
        own = regions.path_of(self.data, self.own_region())
        text = wanted.as_text(change(yaml.safe_load(own.read_text())))
        loaded = check_text(text, COPY)
        if loaded.problems:  # the file that they are on lines of is nobody's
            raise BadInput("\n".join(line.partition(": ")[2] for line in loaded.problems))
        return regions.keep(self.data, text.encode())

    def _kv_as_it_is(self, region: Region) -> dict[str, Any]:
        """Of IDCs whose file says nothing of it: a KV moves by `imctl migrate kv`."""
        runs = {idc.name: idc for idc in self.region.spec.idcs}
        return {
            idc.name: runs[idc.name].engines.kv.model_dump(mode="json", exclude_none=True)
            or "embedded"
            for idc in region.spec.idcs
            if idc.name in runs and wanted.TIKV in self._run.engines and idc.engines.kv.tikv is None
        }

    def site_changes(self, wanted: str, names: Sequence[str]) -> list[Change]:
        return []

    def apply(self, name: str, wanted: str) -> None:
        """Nothing of a unit here changes while it runs."""

    def rolling(self, name: str) -> Rolling | None:
        return None

    def trouble(self, name: str) -> str:
        return ""

    @property
    def engines_here(self) -> bool:
        return bool(self._run.engines)

    def objections(self, wanted: str, units: Sequence[str]) -> list[str]:
        """What stands here against starting these units with the region file of this name: ports
        on which an IDC would listen, did not yet, and somebody else does."""
        region, found = self.region_named(wanted), []
        for idc in region.spec.idcs:
            if idc.name not in units:
                continue
            spec = region.spec.model_copy(update={"idcs": [idc], "witness": None})
            runs = self.region_named(self.region_of(idc.name))
            before = {(host, port) for _, host, port in listeners(runs)}
            taken = _taken(region.model_copy(update={"spec": spec}), before)
            found += [
                f"cannot listen on {one}; stop what uses it, or change the file" for one in taken
            ]
        return found

    def restart(self, name: str, region: str) -> None:
        """An IDC (not its engines) or the witness, with the region file of this name. Returns once
        it runs, perhaps not yet serving; done again it does no harm. Raises Failed."""
        self._demand_admin("Restarting processes")
        self.look_again()
        self.find_lost()
        self._stop(list(reversed(self.ours(name))))
        self._reap()
        for one in self.ours(name):
            if self._state(one) != "gone":
                raise Failed(f"{one} does not end (pid {self._run.processes[one].pid})")
        self._run.regions[name] = region
        self.start([name])

    def adopt(self, region: str) -> None:
        """The region file of this name is the deployment's own from now on."""
        self._demand_admin("Changing the region file")
        copy = Path(self._run.region)
        with replacing(copy) as new:
            new.write_bytes(regions.path_of(self.data, region).read_bytes())
            self.region = load_region(new)
        self._beside = self._look_beside()

    # ------------------------------------------------------------- from one engine to another

    def begin_kv(self, engine: str, pd: Mapping[str, Sequence[str]]) -> dict[str, Any]:
        """What the KV of these IDCs (``pd``: their names) is to be on: each one's ``engines.kv``.
        TiKV runs at the addresses that are given, or beside them: then it serves when this returns,
        and the deployment's region file says so. Raises Failed, BadInput."""
        self.demand_here("Moving its KV")
        if engine == "embedded":
            return dict.fromkeys(pd, "embedded")
        given = [name for name in pd if pd[name]]
        if given and len(given) < len(pd):
            lacking = ", ".join(name for name in pd if name not in given)
            raise BadInput(f"--pd: expected it for all of these IDCs or for none; {lacking} lacks")
        kv = {name: self._tikv_for(name, pd[name]) for name in pd}
        on_tikv = {idc.name for idc in self.region.spec.idcs if idc.engines.kv.tikv}
        elsewhere = on_tikv
        if wanted.TIKV in self._run.engines:
            elsewhere = on_tikv.intersection(self._run.tikv_elsewhere)
        elsewhere = elsewhere.union(name for name in given if not self._names_tikv(name, pd[name]))
        here = [] if given else [name for name in pd if name not in elsewhere]
        if here:
            if lacking := binaries.missing(wanted.programs([wanted.TIKV])):
                raise Failed(lacking)
            self._run.engines = [*dict.fromkeys([*self._run.engines, wanted.TIKV])]
            self._places.write()
        self._run.tikv_elsewhere = sorted(elsewhere)
        self._rewrite(kv)
        for name in here:
            for one in self._beside.of(name):
                if one.kind in beside.TIKV_KINDS:
                    if self._state(one.name) == "gone":
                        self._spawn(one.name)
                    self._wait_for_engine(one.name)
        return kv

    def _names_tikv(self, name: str, pd: Sequence[str]) -> bool:
        """Whether the region file says that the KV of this IDC is on that very TiKV."""
        tikv = self.region.idc(name).engines.kv.tikv
        return tikv is not None and set(tikv.pd) == set(pd)

    def _tikv_for(self, name: str, pd: Sequence[str]) -> dict[str, Any]:
        """``engines.kv`` of an IDC whose TiKV is there, or (none) beside it; with its prefix where
        the region file names that TiKV already."""
        if pd and not self._names_tikv(name, pd):
            return {"tikv": {"pd": list(pd)}}
        return {"tikv": wanted.tikv_of(self.region.idc(name), self._places)}

    def end_kv(self, names: Sequence[str]) -> None:
        """The KV of these IDCs is embedded, now or still: their TiKV needs not run any more, and
        the deployment's region file says so. Raises Failed, BadInput."""
        if self._run.elsewhere:
            return  # nor did it begin here
        self.look_again()
        kinds = beside.TIKV_KINDS
        others = [name for name in names if self.region.idc(name).engines.kv.tikv is not None]
        if not others:
            return
        for stage in (1, 0):
            units = [one for name in others for one in self._beside.of(name)]
            self._stop([one.name for one in units if one.stage == stage and one.kind in kinds])
        self._reap()
        self._rewrite(dict.fromkeys(others, "embedded"))

    def _rewrite(self, kv: Mapping[str, Any]) -> None:
        """The deployment's region file; raises BadInput, and changes nothing then."""
        copy = Path(self._run.region)
        with replacing(copy) as new:
            new.write_text(wanted.with_kv(copy.read_text(), kv))
            self.region = load_region(new)
        for name, known in self._run.regions.items():
            text = regions.path_of(self.data, known).read_text()
            self._run.regions[name] = regions.keep(self.data, wanted.with_kv(text, kv).encode())
        self._write_run()
        self._beside = self._look_beside()

    def check_alive(self, names: Sequence[str]) -> None:
        """Raises Failed, with the last line of its log, for a unit that ended by itself."""
        self._name_cores()
        for name in names:
            if self._state(name) == "gone":
                raise self._died(name)

    def _died(self, name: str) -> Failed:
        return Failed(f"{name} ended while starting: {self.last_words(name)}")

    # ---------------------------------------------------------------------------- stopping

    def stop(self) -> list[str]:
        """Each unit before what it needs: an IDC says its farewell to its registry too."""
        self._demand_admin("Stopping the deployment")
        killed = []
        for _ in range(2):  # a rollout that restarts a unit meanwhile has started it again
            self.find_lost()
            for names in self._ending():
                killed += self._stop(names)
            self._reap()
        (self.data / runfile.NAME).unlink(missing_ok=True)
        return killed

    def _ending(self) -> Iterator[list[str]]:
        """Groups of units that end together, one after the other."""
        yield [*self.apart_names(), *self.standby_names()]
        yield [name for name in self.names() if name != LINKPROXY]
        for stage in (2, 1, 0):
            yield [name for name in self.engine_names() if self._beside[name].stage == stage]
        yield [LINKPROXY]

    def _stop(self, names: Sequence[str]) -> list[str]:
        """Returns the names of those that had to be killed."""
        found = {name: self._run.processes[name] for name in names if name in self._run.processes}
        engines = [name for name in found if name in self.engine_names()]
        grace_s = max([STOP_GRACE_S, *(self._beside[name].ends_s for name in engines)])
        killed = process.stop(list(found.values()), grace_s)
        return [name for name, one in found.items() if one in killed]

    def kill(self, name: str) -> None:
        """An IDC with its engines, so that nothing of it outlives the power cut."""
        self._demand_admin("Killing processes")
        self._signal(name, signal.SIGKILL)
        whole = (*self.ours(name), *self._engines_of(name))
        names = [one for one in whole if one in self._run.processes]
        process.wait_gone([self._run.processes[one] for one in names], 5.0)
        self._reap()

    def terminate(self, name: str) -> None:
        """Let it end by itself, with its farewell; killed when that takes too long."""
        self._demand_admin("Stopping processes")
        self._signal(name, signal.SIGTERM, engines=False)
        self._stop(list(reversed(self.ours(name))))
        for stage in (2, 1, 0):
            self._stop([one.name for one in self._beside.of(name) if one.stage == stage])
        self._reap()

    def kill_role(self, name: str, role: str) -> list[str]:
        """At once and without a farewell, what runs this role of an IDC and nothing else; returns
        the units. ``start`` starts them again. Raises BadInput, Failed."""
        self._demand_admin("Killing processes")
        self._demand_split(name)
        known = f"{FRONT_ROLES},{CORE_ROLES}".split(",")
        if role not in known:
            raise BadInput(f"--role {role}: expected one of {', '.join(known)}")
        self._name_cores()  # a core that stands by runs no role
        units = [name]
        if role in FRONT_ROLES.split(","):
            units = self.fronts_of(name)
        elif role == IPCONF_ROLES:
            units = self.ipconfs_of(name) or units
        elif role == ROUTE_ROLES:
            units = self.routes_of(name) or units
        found = [self._run.processes[one] for one in units if self._state(one) != "gone"]
        if not found:
            raise Failed(f"{', '.join(units)} is not running; `imctl start {name}` starts it")
        for identity in found:
            process.send(identity, signal.SIGKILL)
        process.wait_gone(found, 5.0)
        self._reap()
        return units

    def restart_front(self, name: str, number: int) -> None:
        """A gateway of an IDC becomes its successor, on what is installed now, in its own time.
        Raises Failed."""
        self._demand_admin("Restarting gateways")
        self._demand_split(name)
        self._succeed(name, f"{name}{FRONT}{number}")

    def restart_ipconf(self, name: str, number: int) -> None:
        """An ipconf of an IDC begins anew, on what is installed now. Raises Failed."""
        self._demand_admin("Restarting ipconfs")
        self._succeed(name, f"{name}{IPCONF}{number}")

    def renew_route(self, name: str, number: int) -> None:
        """A route instance of an IDC ends, once its gateways have gone to others, and another one
        begins, on what is installed now. Raises Failed; one that could not begin goes on."""
        self._demand_admin("Restarting route instances")
        unit = f"{name}{ROUTE}{number}"
        if self._state(unit) == "gone":
            raise Failed(f"{unit} is not running; `imctl start {name}` starts it")
        command = [*self._command(unit), "--check"]
        tried = subprocess.run(command, capture_output=True, text=True, check=False)
        if tried.returncode:
            said = (tried.stderr.splitlines() or ["it said nothing"])[-1]
            raise Failed(f"{unit} could not start on what is installed, and goes on: {said}")
        self._stop([unit])
        self._reap()
        self._spawn(unit)

    def _succeed(self, name: str, unit: str) -> None:
        identity = self._run.processes.get(unit)
        if identity is None or not process.send(identity, signal.SIGHUP):
            raise Failed(f"{unit} is not running; `imctl start {name}` starts it")

    def renew_standby(self, name: str) -> None:
        """The core of an IDC that stands by begins anew, on what is installed now; so does one that
        is gone. Raises Failed."""
        self._demand_admin("Restarting cores")
        self._name_cores()
        if not (standby := self.standby_of(name)):
            raise Failed(f"{name} has no second core: `imctl up --split --standby` starts one")
        if self._state(name) == "gone":
            raise Failed(f"{name} is not running; `imctl start {name}` starts it")
        self._stop(standby)
        self._reap()
        self._spawn(standby[0])

    def stands_by(self, name: str) -> bool:
        """Whether the second core of an IDC is ready to take over. Raises Failed when it ended."""
        other = name + STANDBY
        self.check_alive([other])
        return waiting_pid(self.data / name / "data") == self._run.processes[other].pid

    def change_cores(self, name: str) -> None:
        """The core that serves ends, with its farewell; the one that stands by takes over, and has
        the IDC's name when this returns."""
        self._demand_admin("Restarting cores")
        self._stop([name])
        self._reap()
        self._name_cores()

    def _demand_split(self, name: str) -> None:
        if not self.fronts_of(name):
            raise Failed(
                f"{name} runs all its roles in one process, or is not an IDC: `imctl up --split` "
                "runs them apart"
            )

    def pause(self, name: str) -> None:
        self._guard_faults()
        self._signal(name, signal.SIGSTOP)

    def resume(self, name: str) -> None:
        self._guard_faults()
        self._signal(name, signal.SIGCONT)

    def _guard_faults(self) -> None:
        """A signal needs no answer of the process, so its own guard of faults cannot be asked."""
        self._demand_admin("Breaking things on purpose")
        if not self.faults:
            raise Guarded("faults are off: this deployment was not started with `up --faults`")

    def wipe(self, name: str) -> None:
        """An engine's data alone, or all of an IDC."""
        self._demand_admin("Deleting data")
        self.find_lost()  # whose data they are must not run
        own = self._known(name) not in self.engine_names()
        engines = self._beside.of(name) if own else self._beside.wiped_with(name)
        for one in dict.fromkeys([*self.ours(name), *(engine.name for engine in engines)]):
            if self._state(one) != "gone":
                raise Failed(f"{one} is running; `imctl kill {one}` first")
        folders = [engine.data for engine in engines]
        if own:
            folders += [self.data / one / "data" for one in self.ours(name)]
        for folder in folders:
            try:
                shutil.rmtree(folder)
            except FileNotFoundError:
                pass
            except OSError as error:
                raise Failed(f"cannot delete {error.filename}: {error.strerror}") from error

    def _signal(self, name: str, signum: signal.Signals, engines: bool = True) -> None:
        identity = self._run.processes.get(self._known(name))
        hit = identity is not None and process.send(identity, signum)
        for other in (*self.standby_of(name), *self.apart_of(name)):
            beside_it = self._run.processes.get(other)
            hit |= beside_it is not None and process.send(beside_it, signum)
        for engine in self._engines_of(name) if engines else ():
            beside_it = self._run.processes.get(engine)
            hit |= beside_it is not None and process.send(beside_it, signum)
        if not hit:
            raise Failed(f"{name} is not running; `imctl start {name}` starts it")

    def _reap(self) -> None:
        """Our own children that ended leave no zombie. One whose first thread is gone may have
        others that are still ending, and holds its ports and locks until they have."""
        for name, child in list(self._children.items()):
            if process.state(self._run.processes[name]) == "gone":
                with contextlib.suppress(subprocess.TimeoutExpired):
                    child.wait(REAP_S)
                    del self._children[name]

    # ----------------------------------------------------------------------------- looking

    def units(self) -> list[Unit]:
        if self._run.elsewhere:
            return [Unit(name, "elsewhere", 0) for name in self.names()]
        self._name_cores()
        return [
            Unit(name, self._state(name), self._run.processes[name].pid)
            for name in (
                *self.names(),
                *self.standby_names(),
                *self.apart_names(),
                *self.engine_names(),
            )
            if name in self._run.processes
        ]

    def _known(self, name: str) -> str:
        if name not in self.everything():
            names = ", ".join((*self.names(), *self.apart_names(), *self.engine_names()))
            raise BadInput(f"expected one of {names}, got {name!r}")
        return name

    def _state(self, name: str) -> str:
        child = self._children.get(name)
        if child is not None:
            child.poll()
        identity: Identity | None = self._run.processes.get(name)
        return "gone" if identity is None else process.state(identity)

    @property
    def faults(self) -> bool:
        return self._run.faults

    def address(self, name: str) -> str:
        if name == LINKPROXY:
            return self._run.link_admin
        return self.region.peer(idc_of(self._known(name)))

    def last_words(self, name: str) -> str:
        """The last line of its log."""
        log = self.log_file(name)
        return f"{last_line(log) or 'it said nothing'} ({log})"

    def audit_file(self) -> Path:
        return self.data / audit.FILE

    def log_file(self, name: str) -> Path:
        if name == LINKPROXY:
            return self.data / "linkproxy.log"
        if name in self.engine_names():
            return self._beside[name].log
        return self.data / name.removesuffix(STANDBY) / "node.log"


# ------------------------------------------------------------------------------------ checks


def pki_names(region: Region) -> dict[str, list[str]]:
    """Who needs a certificate, and under which hosts it listens."""
    names: dict[str, list[str]] = {LINKPROXY: [], **{role: [] for role in Role}}
    for idc in region.spec.idcs:
        ends = (idc.endpoints.gateway, idc.endpoints.ipconf, idc.endpoints.peer)
        names[idc.name] = sorted({end.rpartition(":")[0] for end in ends})
    if region.spec.witness:
        names[region.spec.witness.name] = [region.spec.witness.peer.rpartition(":")[0]]
    return names


def _check_not_running(folder: Path) -> None:
    if (folder / runfile.SITES).exists():
        raise Failed(
            f"{folder} is of a deployment on Kubernetes, which `imctl deploy` starts there; choose "
            "another with --data"
        )
    run = runfile.read(folder) if folder.exists() else None
    if run is not None and run.elsewhere:
        raise Failed(
            f"{folder} is of a deployment that was attached and runs elsewhere; choose another "
            f"with --data, or delete {folder / runfile.NAME}"
        )
    if run is not None and Path(run.region).exists():
        target = Local.open(folder)
        target.find_lost()
        run = runfile.read(folder)
    alive = [n for n, i in run.processes.items() if process.state(i) != "gone"] if run else []
    if alive:
        raise Failed(
            f"{', '.join(alive)} of {folder} still run; `imctl down --data {folder}` stops them"
        )


def check_ports(region: Region) -> None:
    """Raises Failed, in one line, when somebody else has any of the ports."""
    taken = list(_taken(region))
    if taken:
        others = f" ({len(taken) - 1} more are taken too)" if taken[1:] else ""
        raise Failed(
            f"cannot listen on {taken[0]}{others}; stop what uses it, or change the region file"
        )


def _taken(region: Region, ours: Collection[tuple[str, int]] = ()) -> Iterator[str]:
    for loc, host, port in listeners(region):
        if (host, port) in ours:
            continue
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((host, port))
            except OSError as error:
                why = os.strerror(error.errno) if error.errno else error
                yield f"{host}:{port} ({dotted(loc)}): {why}"


def _swap(found: dict[str, Any], one: str, other: str) -> None:
    """What is found under the one name is found under the other."""
    mine, theirs = found.pop(one, None), found.pop(other, None)
    found.update({name: value for name, value in ((one, theirs), (other, mine)) if value})


def last_line(path: Path) -> str:
    """Of a log that may be long."""
    try:
        with path.open("rb") as file:
            file.seek(max(0, path.stat().st_size - 4096))
            lines = file.read().decode(errors="replace").split("\n")
    except OSError:
        return ""
    last = next((line.strip() for line in reversed(lines) if line.strip()), "")
    return logs.as_text(last).partition("\n")[0]
