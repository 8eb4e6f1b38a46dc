"""One control plane and one node that runs real containers, in namespaces of their own.

All processes, containers too, live in one PID namespace; what they mount and how they are linked
in a mount and a network namespace. So whatever ends its first process ends all of it, and that one
ends with whoever started the cluster, also by SIGKILL. Only its cgroups and its folder are left
then: the next cluster removes the cgroups.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import ssl
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from http.client import HTTPSConnection
from pathlib import Path
from typing import Any, NamedTuple

from imctl.errors import Failed
from imctl.testing.cluster import certificates, settings
from imctl.testing.cluster.programs import Programs
from imctl.testing.cluster.settings import Layout

CGROUPS = Path("/sys/fs/cgroup")
PREFIX = "imctl-cluster-"
START_S = 60.0
# A kernel keeps a network namespace for as long as it still sends the last words of a connection
# whose process was killed, to somebody who is gone as well: up to two minutes.
END_S = 180.0
CLUSTERS_MAX = 200
PODS_COUNT = 8


class Traces(NamedTuple):
    """By what a cluster is found on this machine: also one whose starter was killed."""

    link: str
    cgroup: str
    pids: str  # its PID namespace
    root: str

    def left(self) -> list[str]:
        """What is still there of it; mounts go with the processes."""
        found = [str(top / self.cgroup) for top in _hierarchies() if (top / self.cgroup).exists()]
        return found + [self.root] * Path(self.root).exists() + self.alive()

    def alive(self) -> list[str]:
        """Its processes, and the link to it."""
        link = Path("/sys/class/net", self.link)
        found = [str(link)] * link.exists()
        for process in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if process.name.isdecimal() and os.readlink(process / "ns" / "pid") == self.pids:
                    found.append(str(process))
        return found


class Cluster:
    """Runs from ``start`` to ``stop``."""

    def __init__(self, programs: Programs, root: Path) -> None:
        """``root``: a folder that is not there yet, on a file system that takes overlays."""
        self._programs = programs
        self._root = root
        self._first: subprocess.Popen[bytes] | None = None
        self._children: dict[str, subprocess.Popen[bytes]] = {}
        self.layout = Layout(root, 0, "")
        self.traces: Traces | None = None

    @property
    def kubeconfig(self) -> Path:
        """Of an administrator; it works on this machine."""
        return self.layout.pki("admin.kubeconfig")

    # ------------------------------------------------------------------------------ lifetime

    def start(self) -> None:
        """Until the node is ready and pods can be made. Raises Failed."""
        remove_leftovers()
        (self._root / "logs").mkdir(parents=True)
        self._unshare()
        layout = self.layout
        certificates.write(
            self._root / "pki", settings.NODE, layout.server,
            [layout.node_address, settings.FIRST_SERVICE, "127.0.0.1"],
        )  # fmt: skip
        settings.write(layout)
        self._link()
        self._mount()
        servers = str(self._programs.kubernetes)
        self._spawn("containerd", ["containerd", *settings.containerd(layout)])
        self._spawn("etcd", [str(self._programs.etcd), *settings.etcd(layout)])
        self._spawn("kube-apiserver", [servers, "kube-apiserver", *settings.api_server(layout)])
        self._until("the API server", self._serves)
        for name, arguments in (
            ("kube-controller-manager", settings.controller_manager(layout)),
            ("kube-scheduler", settings.scheduler(layout)),
            ("kube-proxy", settings.kube_proxy(layout)),
        ):
            self._spawn(name, [servers, name, *arguments])
        self._until("containerd", self._runs_containers)
        self.load(self._programs.pause_image)
        self._spawn("kubelet", [servers, "kubelet", *settings.kubelet(layout)])
        self._until("the node", self._has_node)
        # Made by the controllers; a pod before it is refused.
        self.kubectl("wait", "--for=create", "serviceaccount/default", "--timeout=60s")

    def stop(self) -> None:
        """Leaves no process, mount, link, cgroup or file. Raises Failed when something stays."""
        if self._first is not None:
            self._first.kill()
            self._first.wait()
        for child in self._children.values():
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            child.wait()
        if self.layout.cgroup:  # the link need not wait for the kernel, as it does after a kill
            gone = ["ip", "link", "delete", self.layout.link]
            subprocess.run(gone, capture_output=True, check=False)
        self._until_gone()
        if self.layout.cgroup:
            _remove_cgroups(self.layout.cgroup)
        shutil.rmtree(self._root, ignore_errors=True)
        if self._root.exists():
            raise Failed(f"{self._root} cannot be removed")

    def _until_gone(self) -> None:
        """The kernel kills the rest after the first process, and takes the namespaces apart after
        the last one."""
        deadline = time.monotonic() + END_S
        while self.traces and (alive := self.traces.alive()):
            if time.monotonic() > deadline:
                raise Failed(f"still there {END_S:g} s after its end: {', '.join(alive)}")
            time.sleep(0.05)

    # ---------------------------------------------------------------------------- namespaces

    def _unshare(self) -> None:
        # With pytest unshare ends, with unshare the first process, and with it all.
        command = [
            "setpriv", "--pdeathsig", "KILL",
            "unshare", "--net", "--mount", "--pid", "--fork", "--kill-child", "--mount-proc",
            str(self._programs.pause),
        ]  # fmt: skip
        self._first = subprocess.Popen(command, stdin=subprocess.DEVNULL, start_new_session=True)
        cgroup = f"{PREFIX}{self._first.pid}"
        self.layout = Layout(self._root, _free_number(), cgroup)
        _make_cgroups(cgroup)
        deadline = time.monotonic() + START_S
        while not self._init():
            if self._first.poll() is not None or time.monotonic() > deadline:
                raise Failed("no namespaces can be made here: root and CAP_SYS_ADMIN are needed")
            time.sleep(0.01)
        pids = os.readlink(f"/proc/{self._init()}/ns/pid")
        self.traces = Traces(self.layout.link, cgroup, pids, str(self._root))

    def _init(self) -> int:
        """The first process of the namespaces, as this machine numbers it; 0: not yet."""
        assert self._first is not None
        pid = self._first.pid
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        if not children:
            return 0
        # Before its exec it may still be mounting.
        program = Path(f"/proc/{children[0]}/exe")
        return int(children[0]) if program.resolve() == self._programs.pause.resolve() else 0

    def inside(self, *command: str | Path) -> list[str]:
        """The command line that runs this one in the cluster's namespaces, on the node."""
        return [
            "nsenter", f"--target={self._init()}", "--net", "--mount", "--pid", "--",
            *map(str, command),
        ]  # fmt: skip

    def _run(self, *command: str | Path, given: str | None = None) -> str:
        return run(self.inside(*command), given)

    def _link(self) -> None:
        """The node's address is on a bridge; this machine is the way out of it."""
        own, peer = self.layout.link, f"{self.layout.link}p"
        address, outside = self.layout.node_address, self.layout.machine_address
        run(["ip", "link", "add", own, "type", "veth", "peer", peer, "netns", str(self._init())])
        run(["ip", "addr", "add", f"{outside}/24", "dev", own])
        run(["ip", "link", "set", own, "up"])
        self._run(
            "ip", "-batch", "-",
            given=(
                "link set lo up\n"
                "link add node type bridge\n"
                f"link set {peer} master node\n"
                f"link set {peer} up\n"
                f"addr add {address}/24 dev node\n"
                "link set node up\n"
                f"route add default via {outside}\n"
            ),
        )  # fmt: skip
        self._run("sh", "-c", "echo 1 > /proc/sys/net/ipv4/ip_forward")

    def join(self, other: Cluster) -> None:
        """The nodes of both, and their pods, reach each other's node at its address, by a link of
        their own. Raises Failed."""
        ends = [(self, other), (other, self)]
        names = [f"to{there.layout.number}" for _, there in ends]
        run([
            "ip", "link", "add", names[0], "netns", str(self._init()), "type", "veth",
            "peer", "name", names[1], "netns", str(other._init()),
        ])  # fmt: skip
        for (here, there), name in zip(ends, names, strict=True):
            numbers = here.layout.number, there.layout.number
            own, far = settings.link_address(*numbers), settings.link_address(*reversed(numbers))
            here._run(
                "ip", "-batch", "-",
                given=(
                    f"addr add {own} peer {far}/32 dev {name}\n"
                    f"link set {name} up\n"
                    f"route add {there.layout.node_address}/32 via {far}\n"
                ),
            )  # fmt: skip

    def _mount(self) -> None:
        """Where programs write whatever they are told, they write into memory of this cluster."""
        kubelet = self._root / "kubelet"
        kubelet.mkdir()
        script = [
            "set -e",
            *(f"mount -t tmpfs tmpfs {folder}" for folder in ("/run", "/var/log")),
            "mkdir /run/upper /run/work",  # some of these folders are not there yet
            "mount -t overlay -o lowerdir=/var/lib,upperdir=/run/upper,workdir=/run/work "
            "overlay /var/lib",
            # Sockets are below it, whose paths have 107 bytes at most.
            f"mkdir -p {settings.KUBELET} && mount --bind {kubelet} {settings.KUBELET}",
        ]
        fakes = self._root / "sysctls"
        fakes.mkdir()
        for name, value in settings.SYSCTLS.items():
            fake = fakes / name.replace("/", ".")
            fake.write_text(f"{value}\n")
            script.append(f"mount --bind {fake} /proc/sys/{name}")
        self._run("sh", "-c", "\n".join(script))

    # ------------------------------------------------------------------------------ programs

    def _spawn(self, name: str, command: Sequence[str]) -> None:
        with (self._root / "logs" / f"{name}.log").open("ab") as log:
            self._children[name] = subprocess.Popen(
                self.inside(*command),
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
                cwd=self._root,
            )

    def _until(self, what: str, ready: Callable[[], bool]) -> None:
        deadline = time.monotonic() + START_S
        while not ready():
            for name, child in self._children.items():
                if child.poll() is not None:
                    raise Failed(f"{name} ended: {self.log(name)[-1500:]}")
            if time.monotonic() > deadline:
                logs = "\n".join(f"{name}: {self.log(name)[-800:]}" for name in self._children)
                raise Failed(f"{what} is not ready after {START_S:g} s\n{logs}")
            time.sleep(0.1)

    def log(self, name: str) -> str:
        return (self._root / "logs" / f"{name}.log").read_text(errors="replace")

    def _serves(self) -> bool:
        host, port = self.layout.node_address, settings.API_PORT
        authority = ssl.create_default_context(cafile=str(self.layout.pki("ca.crt")))
        connection = HTTPSConnection(host, port, timeout=2, context=authority)
        try:
            connection.request("GET", "/readyz")
            return connection.getresponse().read() == b"ok"
        except OSError:
            return False
        finally:
            connection.close()

    def _runs_containers(self) -> bool:
        asked = self.inside("ctr", "--address", self.layout.socket, "version")
        return subprocess.run(asked, capture_output=True, check=False).returncode == 0

    def _has_node(self) -> bool:
        nodes = json.loads(self.kubectl("get", "nodes", "-o", "json"))["items"]
        return any(
            condition["type"] == "Ready" and condition["status"] == "True"
            for node in nodes
            for condition in node["status"].get("conditions", [])
        )

    # ----------------------------------------------------------------------------------- use

    def kubectl(self, *arguments: str, given: str | None = None) -> str:
        """What it prints. ``given``: its standard input. Raises Failed."""
        return run([*self.command("kubectl"), *arguments], given)

    def helm(self, *arguments: str) -> str:
        """What it prints. Raises Failed."""
        return run([*self.command("helm"), *arguments])

    def command(self, name: str) -> list[str]:
        """``kubectl`` or ``helm``, told which cluster."""
        return [str(getattr(self._programs, name)), f"--kubeconfig={self.kubeconfig}"]

    def apply(self, *objects: dict[str, Any], namespace: str = "default") -> None:
        """Raises Failed."""
        listed = {"apiVersion": "v1", "kind": "List", "items": list(objects)}
        self.kubectl("apply", f"--namespace={namespace}", "-f", "-", given=json.dumps(listed))

    def load(self, archive: Path) -> None:
        """Of an image; from now on pods may use it. Raises Failed."""
        self._run(
            "ctr", "--address", self.layout.socket, "--namespace", "k8s.io",
            "images", "import", archive,
        )  # fmt: skip

    def tag(self, image: str, name: str) -> None:
        """The same image under another name, too. Raises Failed."""
        self._run(
            "ctr", "--address", self.layout.socket, "--namespace", "k8s.io",
            "images", "tag", "--force", image, name,
        )  # fmt: skip

    def kill(self, container: str) -> None:
        """By SIGKILL, as a power cut would. ``container``: its `containerID`. Raises Failed."""
        self._run(
            "ctr", "--address", self.layout.socket, "--namespace", "k8s.io",
            "tasks", "kill", "--signal", "SIGKILL", container.removeprefix("containerd://"),
        )  # fmt: skip

    def volumes(self, claims: Iterable[tuple[str, str]]) -> None:
        """An empty one for each claim, by its namespace and name. Anybody may write them: a pod's
        group does not become such a folder's. Raises Failed."""
        made = []
        for namespace, claim in claims:
            folder = Path(tempfile.mkdtemp(dir=self._root))
            folder.chmod(0o777)
            made.append(settings.volume(folder, namespace, claim))
        self.apply(*made)


# ------------------------------------------------------------------------------------- parts


def run(command: Sequence[str], given: str | None = None) -> str:
    """Raises Failed with what it said."""
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


def _free_number() -> int:
    taken = {path.name for path in Path("/sys/class/net").iterdir()}
    for number in range(CLUSTERS_MAX):
        if Layout(Path(), number, "").link not in taken:
            return number
    raise Failed(f"{CLUSTERS_MAX} clusters run here already")


def _hierarchies() -> list[Path]:
    """Of cgroups: the one of version 2, or one for each controller of version 1."""
    tops = [CGROUPS, *(path for path in CGROUPS.iterdir() if os.path.ismount(path))]
    return [top for top in tops if (top / "cgroup.procs").exists()]


def _make_cgroups(name: str) -> None:
    """All pods together count as so many processes where cores are short, and not as one."""
    as_nice = PODS_COUNT * 1.25 ** -os.nice(0)  # as the kernel weighs a process of this starter
    for hierarchy in _hierarchies():
        (hierarchy / name).mkdir()
        for file, one in (("cpu.shares", 1024), ("cpu.weight", 100)):
            if (path := hierarchy / name / file).exists():
                path.write_text(str(min(10_000, max(2, round(as_nice * one)))))


def _remove_cgroups(name: str) -> None:
    """Raises Failed when a process is still in one."""
    deadline = time.monotonic() + END_S
    for hierarchy in _hierarchies():
        for folder, _, _ in os.walk(hierarchy / name, topdown=False):
            while True:
                try:
                    os.rmdir(folder)
                    break
                except FileNotFoundError:
                    break
                except OSError as error:
                    if time.monotonic() > deadline:
                        raise Failed(f"{folder} cannot be removed: {error.strerror}") from error
                    time.sleep(0.05)


def remove_leftovers() -> None:
    """What clusters left whose process was killed."""
    names = {path.name for top in _hierarchies() for path in top.glob(f"{PREFIX}*")}
    for name in names:
        found = re.fullmatch(rf"{PREFIX}(\d+)", name)
        if found and not Path(f"/proc/{found[1]}").exists():
            _remove_cgroups(name)


@contextlib.contextmanager
def running(programs: Programs, folder: Path) -> Iterator[Cluster]:
    """Raises Failed."""
    cluster = Cluster(programs, Path(tempfile.mkdtemp(dir=folder)) / "cluster")
    try:
        cluster.start()
        yield cluster
    finally:
        cluster.stop()
