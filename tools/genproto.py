"""Generate the Protobuf stubs next to their sources: ``make proto`` (or, with --check, compare)."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[1]
# An engine's own API lies beside its adapter.
FOLDERS = ("imcore/proto", "services/engines/etcd")
SOURCES = sorted(path for folder in FOLDERS for path in (ROOT / folder).glob("*.proto"))


def generate(into: Path) -> None:
    """Write ``*_pb2.py``, ``*_pb2.pyi`` and ``*_pb2_grpc.py`` below ``into``."""
    import grpc_tools

    include = Path(grpc_tools.__file__).parent / "_proto"
    scripts = Path(sys.executable).parent
    arguments = [
        "protoc",
        f"--plugin=protoc-gen-mypy={scripts / 'protoc-gen-mypy'}",
        f"--plugin=protoc-gen-mypy_grpc={scripts / 'protoc-gen-mypy_grpc'}",
        f"-I{ROOT}",
        f"-I{include}",
        f"--python_out={into}",
        f"--mypy_out=quiet:{into}",
        f"--grpc_python_out={into}",
        f"--mypy_grpc_out=quiet:{into}",
        *[str(p.relative_to(ROOT)) for p in SOURCES],
    ]
    if protoc.main(arguments) != 0:
        raise SystemExit("protoc failed; its message stands above")
    for path in into.rglob("*_pb2_grpc.py"):
        # A file without services gets an empty stub module: nothing to keep.
        if "class " not in path.read_text():
            path.unlink()
            path.with_suffix(".pyi").unlink(missing_ok=True)


def stale() -> list[str]:
    """Names of generated files that differ from what their sources give."""
    with tempfile.TemporaryDirectory() as folder:
        fresh_root = Path(folder)
        generate(fresh_root)
        fresh = {p.relative_to(fresh_root): p.read_text() for p in fresh_root.rglob("*_pb2*")}
    return sorted(
        str(name)
        for name, text in fresh.items()
        if not (ROOT / name).exists() or (ROOT / name).read_text() != text
    )


if __name__ == "__main__":
    if "--check" in sys.argv:
        if names := stale():
            raise SystemExit(f"run `make proto`: stale {', '.join(names)}")
    else:
        generate(ROOT)
