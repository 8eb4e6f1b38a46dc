"""Images without a registry: the pause image, and ours by the Containerfile."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

from imctl.engines import binaries
from imctl.errors import Failed

ROOT = Path(__file__).parents[3]
NAME = "localhost/imctl:test"
SUITE = "bookworm"  # its Python is 3.11, as the lock file wants
ARCHIVE = "http://deb.debian.org/debian"
PACKAGES = "python3.11-minimal,python3.11-venv,libstdc++6,ca-certificates"
LEFT_OUT = ("doc", "man", "info", "locale")  # of /usr/share
AUTHORITIES = Path("/etc/ssl/certs/ca-certificates.crt")
STORE_IMAGES_MAX = 60  # with the layers of earlier builds; then all is built anew


def pause(program: bytes, name: str) -> bytes:
    """An archive of an image of that program alone, which is linked statically."""
    layer = _tar({"pause": program})
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Entrypoint": ["/pause"], "User": "65535:65535"},
            "rootfs": {"type": "layers", "diff_ids": [f"sha256:{_digest(layer)}"]},
        }
    ).encode()
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    return _tar(
        {
            "manifest.json": json.dumps(manifest).encode(),
            "config.json": config,
            "layer.tar": layer,
        }
    )


def _tar(files: dict[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
    return out.getvalue()


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


# -------------------------------------------------------------------------------------- ours


def build() -> Path:
    """An archive of ``NAME`` as the checkout is now; what was built of the same files is taken
    again. Raises Failed."""
    base = _base()
    folder = binaries.cache_folder() / "image"
    target = folder / f"{_key(base)}.tar"
    if target.exists():
        return target
    folder.mkdir(exist_ok=True)
    store = folder / "store"
    if store.exists() and len(_buildah(store, "images", "--all", "--quiet").split()) > (
        STORE_IMAGES_MAX
    ):
        _unmount(store)
        shutil.rmtree(store)
    python = f"localhost/python:{_digest(str(base).encode())[:12]}"
    if python not in _buildah(store, "images", "--format", "{{.Name}}:{{.Tag}}").split():
        recipe = base.with_name("Containerfile")
        recipe.write_text(f"FROM scratch\nADD {base.name} /\n")
        _bud(store, "--tag", python, "--file", str(recipe), str(base.parent))
    _bud(
        store, "--layers", "--network=host", "--tag", NAME, f"--build-arg=BASE={python}",
        *_network(), "--file", str(ROOT / "Containerfile"), str(ROOT),
    )  # fmt: skip
    fresh = folder / f"fresh-{os.getpid()}"
    _buildah(store, "push", "--quiet", NAME, f"docker-archive:{fresh}:{NAME}")
    for former in folder.glob("*.tar"):
        former.unlink()
    fresh.replace(target)
    return target


def _unmount(folder: Path) -> None:
    """What builds that were killed have left mounted there, the innermost first."""
    mounted = [line.split()[1] for line in Path("/proc/self/mounts").read_text().splitlines()]
    for at in reversed([each for each in mounted if Path(each).is_relative_to(folder)]):
        subprocess.run(["/bin/umount", "--lazy", at], check=False, capture_output=True)


def _key(base: Path) -> str:
    digest = hashlib.sha256(str(base).encode())
    for path in _content():
        digest.update(f"{path.relative_to(ROOT)} {_digest(path.read_bytes())}\n".encode())
    return digest.hexdigest()[:16]


def _content() -> Iterator[Path]:
    """All that the image is made of."""
    for name in ("Containerfile", ".containerignore", "requirements.lock", "pyproject.toml"):
        yield ROOT / name
    yield ROOT / "README.md"
    for package in ("imcore", "imctl", "services"):
        for path in sorted((ROOT / package).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                yield path
    yield from sorted((ROOT / "regions" / "drills").glob("*.yaml"))


def _base() -> Path:
    """A root file system with Python, and no more of Debian than that."""
    without = [f"--dpkgopt=path-exclude=/usr/share/{folder}/*" for folder in LEFT_OUT]
    command = [
        "mmdebstrap", "--quiet", "--variant=essential", f"--include={PACKAGES}", *without,
        "--format=tar", SUITE,
    ]  # fmt: skip
    folder = binaries.cache_folder() / f"image-base-{_digest(' '.join(command).encode())[:12]}"
    target = folder / "base.tar"
    if not target.exists():
        folder.mkdir(exist_ok=True)
        fresh = folder / f"fresh-{os.getpid()}.tar"
        _run([*command, str(fresh), ARCHIVE], SOURCE_DATE_EPOCH="0")
        fresh.replace(target)
    return target


def _network() -> list[str]:
    """How this machine reaches the package index."""
    known = [name for name in ("PIP_INDEX_URL", "PIP_CERT") if os.environ.get(name)]
    flags = [f"--build-arg={name}={os.environ[name]}" for name in known]
    if AUTHORITIES.exists():
        flags.append(f"--volume={AUTHORITIES}:{AUTHORITIES}:ro")
    return flags


def _bud(store: Path, *arguments: str) -> None:
    # The same files give the same image, whenever it is built.
    _buildah(store, "bud", "--isolation=chroot", "--timestamp=0", "--quiet", *arguments)


def _buildah(store: Path, *arguments: str) -> str:
    """Its store is our own: nothing else of this machine is read or changed."""
    run = store.with_name("run")
    driver = ["--root", str(store), "--runroot", str(run), "--storage-driver=overlay"]
    return _run(["buildah", *driver, *arguments])


def _run(command: list[str], **variables: str) -> str:
    environment = os.environ | variables
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment)
    if done.returncode != 0:
        raise Failed(f"{' '.join(command[:6])} ...: {done.stderr.strip()[-1500:]}")
    return done.stdout
