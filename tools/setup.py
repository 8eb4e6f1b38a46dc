"""Make .venv with the locked packages: ``python3 tools/setup.py [demo|test]``.

pip, which comes with Python, installs uv, and uv everything else, in a third of the time; both look
at the hashes. uv does not read pip's settings, so it is told them here.

Standard library only, and no syntax that Python 3.6 does not know: an old Python must get to the
line that says it is too old. What is there already is not done again: a stamp in .venv holds a
hash over the lock file and the interpreter.
"""

import ast
import hashlib
import os
import re
import subprocess
import sys

NEEDED = (3, 11)
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
VENV = os.path.join(ROOT, ".venv")
PYTHON = os.path.join(VENV, "bin", "python")
STAMP = os.path.join(VENV, "imctl-setup")
LOCKS = {"demo": "requirements.lock", "test": "requirements-dev.lock"}
UV = os.path.join(VENV, "bin", "uv")
UV_LOCK = "requirements-setup.lock"
# What uv calls what pip is told by its files and by PIP_... in the environment.
PIP_SETTING = re.compile(r"^(?:global|install|:env:)\.([a-z-]+)=(.+)$")
PIP_OFFLINE = re.compile(r"\.no-index='(?:1|true|yes|on)'", re.IGNORECASE)
UV_NAMES = {
    "index-url": "UV_DEFAULT_INDEX",
    "extra-index-url": "UV_EXTRA_INDEX_URL",
    "find-links": "UV_FIND_LINKS",
    "trusted-host": "UV_INSECURE_HOST",
    "cert": "SSL_CERT_FILE",
    "proxy": "ALL_PROXY",
    "default-timeout": "UV_HTTP_TIMEOUT",
    "timeout": "UV_HTTP_TIMEOUT",
}
OTHER_PYTHON = "call make with PYTHON=/path/to/python3.11"
NETWORK_SIGNS = (
    "name resolution",
    "Failed to establish a new connection",
    "No matching distribution",
    "ConnectionError",
    "timed out",
    "ProxyError",
    "SSLError",
    "Failed to fetch",
)


class Failed(Exception):
    """One line that says what is wrong and what to do."""


def check_python() -> None:
    if sys.version_info[:2] < NEEDED:
        version = sys.version.split()[0]
        raise Failed(
            f"Python 3.11 or newer is needed, {sys.executable} is {version}; {OTHER_PYTHON}"
        )


def wanted_stamp(kind: str) -> str:
    digest = hashlib.sha256()
    for name in (UV_LOCK, LOCKS[kind], "pyproject.toml"):
        with open(os.path.join(ROOT, name), "rb") as file:
            digest.update(file.read())
    digest.update(sys.version.encode())
    return f"{kind} {digest.hexdigest()}"


def is_done(kind: str) -> bool:
    """The test set-up holds all that the demo needs."""
    try:
        with open(STAMP) as file:
            stamp = file.read()
    except OSError:
        return False
    kinds = ("demo", "test") if kind == "demo" else ("test",)
    return os.path.exists(PYTHON) and stamp in [wanted_stamp(one) for one in kinds]


def run(arguments: "list[str]", what: str, **more: str) -> None:
    """Run quietly, with ``more`` in the environment; on failure show what it said, and raise with
    what to do."""
    environment = dict(os.environ, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_NO_INPUT="1", **more)
    environment.pop("PYTHONPATH", None)
    process = subprocess.Popen(
        arguments,
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        universal_newlines=True,
    )
    output = process.communicate()[0]
    if process.returncode == 0:
        return
    sys.stderr.write(output)
    if any(sign in output for sign in NETWORK_SIGNS):
        raise Failed(f"{what}: the package registry was not reached or lacks a package (above)")
    if "Permission denied" in output or "Read-only file system" in output:
        raise Failed(f"{what}: no write permission below {VENV}; change its owner or remove it")
    raise Failed(f"{what} failed with status {process.returncode} (above)")


def make_venv() -> None:
    try:
        # A Python without either of them cannot make a .venv that works.
        import ensurepip
        import venv

        del ensurepip, venv
    except ImportError:
        raise Failed(
            f"{sys.executable} has no venv module; install it (Debian: apt install python3-venv), "
            f"or {OTHER_PYTHON}"
        ) from None
    if same_python():
        return
    if os.path.exists(VENV) and not os.path.isdir(VENV):
        raise Failed(f"{VENV} is no folder, and a Python environment is made there: remove it")
    for path in (ROOT, VENV):
        if os.path.exists(path) and not os.access(path, os.W_OK):
            raise Failed(f"no write permission in {path}; .venv is made there: change its owner")
    run([sys.executable, "-m", "venv", "--clear", VENV], "making .venv")


def same_python() -> bool:
    """Whether .venv works and is of this Python; if not, it is made anew."""
    try:
        found = subprocess.check_output(
            [PYTHON, "-c", "import pip, sys; print(sys.version)"],
            stderr=subprocess.DEVNULL,
            universal_newlines=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return False
    return found.strip() == sys.version.strip()


def uv_settings(pip_settings: str) -> "dict[str, str]":
    """``pip_settings``: what `pip config list` prints; the environment's come last there, and win.
    What uv has been told itself stays."""
    found = {}
    for line in pip_settings.splitlines():
        setting = PIP_SETTING.match(line)
        if setting is not None and setting.group(1) in UV_NAMES:
            values = str(ast.literal_eval(setting.group(2))).split()
            name = UV_NAMES[setting.group(1)]
            found[name] = ("," if name == "UV_FIND_LINKS" else " ").join(values)
    return {name: value for name, value in found.items() if name not in os.environ}


def install(kind: str) -> None:
    # A lock names all that is needed, so nothing is looked for.
    locked = ["--quiet", "--no-deps", "--require-hashes", "-r"]
    pip = [PYTHON, "-m", "pip"]
    run([*pip, "install", *locked, os.path.join(ROOT, UV_LOCK)], "installing " + UV_LOCK)
    asked = [*pip, "config", "list"]
    listed = subprocess.run(asked, stdout=subprocess.PIPE, text=True).stdout
    settings = uv_settings(listed)
    # Compiled at once, or the first processes that start would all do it.
    uv = [UV, "pip", "install", "--python", PYTHON, "--compile-bytecode"]
    if PIP_OFFLINE.search(listed):
        uv.append("--no-index")
    lock = os.path.join(ROOT, LOCKS[kind])
    run([*uv, *locked, lock], "installing " + LOCKS[kind], **settings)
    own = ["--quiet", "--no-deps", "--no-build-isolation", "-e", ROOT]
    run([*uv, *own], "installing imctl itself", **settings)


def set_up(kind: str) -> None:
    if is_done(kind):
        return
    print(f"Setting up .venv from {LOCKS[kind]} (once; half a minute) ...", flush=True)
    try:
        if os.path.exists(STAMP):
            os.remove(STAMP)
        make_venv()
        install(kind)
        with open(STAMP, "w") as file:
            file.write(wanted_stamp(kind))
    except OSError as error:
        raise Failed(f"{error.filename or VENV}: {error.strerror or error}") from error


def main() -> None:
    kind = sys.argv[1] if len(sys.argv) > 1 else "demo"
    try:
        check_python()
        if kind not in LOCKS:
            raise Failed(f"expected demo or test, got {kind}")
        set_up(kind)
    except Failed as error:
        raise SystemExit(f"error: {error}") from None
    except KeyboardInterrupt:
        raise SystemExit("interrupted; make goes on from here next time") from None


if __name__ == "__main__":
    main()
