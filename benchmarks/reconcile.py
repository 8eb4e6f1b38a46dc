"""The operator and a thousand objects, on a real API server; and the time from an IDC's object to
its serving, with real pods.

There are no nodes for the thousand: pods are made of their StatefulSets, wait for a node, and this
benchmark says of each that it is ready, as a kubelet would."""

from __future__ import annotations

import asyncio
import contextlib
import copy
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import yaml
from kubernetes_asyncio.client import ApiClient
from kubernetes_asyncio.config import new_client_from_config
from prometheus_client.parser import text_string_to_metric_families

from benchmarks.deployment import Failed, Processes
from imctl.api.crd import definition
from imctl.api.kinds import API_VERSION, KINDS
from imctl.reconcile.cluster import Cluster as Api
from imctl.reconcile.cluster import Conflict
from imctl.target.places import free_port
from imctl.testing.cluster import image, lab, programs, settings
from imctl.testing.cluster.cluster import Cluster, running

NAMESPACES = 10
AIM_S = 2.0  # event to status, p95
LIMIT_S = 600.0
WRITERS = 8
EVERY_S = 0.2  # between edits of one object each
QUIET_S = 60.0  # in which the operator lists all that it made once, and looks at a fifth of all
LEASE_IN = "default"
SECRETS = {
    "fra-certificate": ("ca.crt", "tls.crt", "tls.key"),
    "region-keys": ("region-keys.json",),
}


class Counts(NamedTuple):
    calls: Counter[str]
    looks: Counter[str]
    cpu_s: float

    def since(self, before: Counts) -> Counts:
        return Counts(
            self.calls - before.calls, self.looks - before.looks, self.cpu_s - before.cpu_s
        )

    def line(self) -> str:
        looks, calls = self.looks.total(), self.calls.total()
        most = ", ".join(f"{name} {n}" for name, n in self.calls.most_common(6))
        return (
            f"{looks} looks, {calls} API calls ({calls / max(1, looks):.1f} a look: {most}), "
            f"{self.cpu_s:.1f} s of CPU ({self.cpu_s / max(1, looks) * 1000:.1f} ms a look)"
        )


class Operator:
    """In all namespaces; what it does is told by its own metrics."""

    def __init__(self, kubeconfig: Path, folder: Path) -> None:
        self._log = folder / "operator.log"
        self._at = f"127.0.0.1:{free_port()}"
        command = [sys.executable, "-m", "imctl", "operator", "run", "--metrics", self._at]
        command += ["--lease-namespace", LEASE_IN, "--audit", str(folder)]
        environment = {**os.environ, "KUBECONFIG": str(kubeconfig)}
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        self._cpu = Processes([self.process.pid])

    async def counts(self) -> Counts:
        async with (
            aiohttp.ClientSession() as session,
            session.get(f"http://{self._at}/metrics") as answer,
        ):
            text = await answer.text()
        found = Counts(Counter(), Counter(), self._cpu.cpu_s())
        for family in text_string_to_metric_families(text):
            for name, labels, value, *_ in family.samples:
                if name == "im_operator_api_calls_total":
                    found.calls[f"{labels['verb']} {labels['resource']}"] += int(value)
                elif name == "im_operator_reconcile_seconds_count":
                    found.looks[labels["kind"]] += int(value)
        return found

    async def looked(self, count: int) -> None:
        """Until it has looked at so many IDCs."""
        while True:
            if (await self.counts()).looks["IDC"] >= count:
                return
            await asyncio.sleep(0.5)

    def rss_mib(self) -> float:
        for line in Path(f"/proc/{self.process.pid}/status").read_text().splitlines():
            if line.startswith("VmRSS:"):
                return int(line.split()[1]) / 1024
        raise Failed("the operator has ended")

    def leads(self) -> bool:
        return "holds the lease" in self._log.read_text(errors="replace")

    async def stop(self) -> None:
        self.process.terminate()
        await asyncio.to_thread(self.process.wait, 20)
        self._log.unlink()


async def until(what: Callable[[], bool], why: str, limit_s: float = LIMIT_S) -> float:
    """How long it took. Raises Failed."""
    began = time.monotonic()
    while not what():
        if time.monotonic() - began > limit_s:
            raise Failed(f"{why}: not within {limit_s:g} s")
        await asyncio.sleep(0.02)
    return time.monotonic() - began


class Seen:
    """Statuses of IDCs as a watch tells them, and how many there are of each phase."""

    def __init__(self, api: ApiClient) -> None:
        self._api = api
        self.phases: dict[tuple[str, str], str] = {}
        self.observed: dict[tuple[str, str], int] = {}
        self.told = asyncio.Event()

    async def run(self) -> None:
        async for each in watched(self._api, f"/apis/{API_VERSION}/idcs"):
            key = each["metadata"]["namespace"], each["metadata"]["name"]
            status = each.get("status", {})
            self.phases[key] = status.get("phase", "")
            self.observed[key] = int(status.get("observed_generation") or 0)
            self.told.set()

    def count(self, *phases: str) -> int:
        return sum(phase in phases for phase in self.phases.values())


async def watched(api: ApiClient, path: str) -> AsyncIterator[dict[str, Any]]:
    """Each object as it is and as it changes; begun again when the API server ends it."""
    while True:
        with contextlib.suppress(TimeoutError, aiohttp.ClientError):
            async for each in _once(api, path):
                yield each


async def _once(api: ApiClient, path: str) -> AsyncIterator[dict[str, Any]]:
    response = await api.call_api(
        path, "GET", {}, [("watch", "1")], {"Accept": "application/json"},
        auth_settings=["BearerToken"], _preload_content=False, _return_http_data_only=True,
    )  # fmt: skip
    async for line in response.content:
        yield json.loads(line)["object"]


async def say_ready(api: ApiClient) -> None:
    """Of every pod, as kubelets do."""
    done: set[str] = set()
    async for pod in watched(api, "/api/v1/pods"):
        metadata = pod["metadata"]
        if not metadata["namespace"].startswith("bench-") or metadata["uid"] in done:
            continue
        done.add(metadata["uid"])
        status = {"status": {"conditions": [{"type": "Ready", "status": "True"}]}}
        await api.call_api(
            f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status", "PATCH",
            {}, [], {"Content-Type": "application/merge-patch+json", "Accept": "application/json"},
            body=status, auth_settings=["BearerToken"], _preload_content=False,
        )  # fmt: skip


def wanted(count: int) -> Iterator[dict[str, Any]]:
    """So many objects: a Region in each namespace, else IDCs."""
    source = yaml.safe_load(lab.TWO_IDCS.read_text())
    for number in range(count):
        namespace = f"bench-{number % NAMESPACES}"
        if number < NAMESPACES:
            region = copy.deepcopy(source)
            region["metadata"]["namespace"] = namespace
            yield region
            continue
        yield {
            "apiVersion": API_VERSION,
            "kind": "IDC",
            "metadata": {"name": f"fra-{number}", "namespace": namespace},
            "spec": {
                "region": source["metadata"]["name"],
                "idc": "fra",
                "image": "imctl:1",
                "certificates": {"secret": "fra-certificate", "region_keys": "region-keys"},
            },
        }


async def apply_all(api: Api, objects: Iterator[dict[str, Any]]) -> None:
    async def write() -> None:
        for each in objects:
            with contextlib.suppress(Conflict):
                await api.apply(each, manager="bench")

    await asyncio.gather(*(write() for _ in range(WRITERS)))


def prepare(cluster: Cluster) -> None:
    crds = yaml.safe_dump_all([definition(kind) for kind in KINDS])
    cluster.kubectl("apply", "--server-side", "-f", "-", given=crds)
    for kind in KINDS:
        lab.until_known(cluster, kind.plural)
    cluster.kubectl("cordon", settings.NODE)
    for number in range(NAMESPACES):
        namespace = f"bench-{number}"
        cluster.kubectl("create", "namespace", namespace)
        cluster.apply(
            *(
                {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name},
                 "stringData": dict.fromkeys(keys, "x")}
                for name, keys in SECRETS.items()
            ),
            namespace=namespace,
        )  # fmt: skip


async def thousand(cluster: Cluster, folder: Path, count: int, edits: int) -> dict[str, float]:
    """Prints the figures; returns those that a test judges."""
    await asyncio.to_thread(prepare, cluster)
    async with (
        await new_client_from_config(str(cluster.kubeconfig)) as client,
        await new_client_from_config(str(cluster.kubeconfig)) as kubelet,
        contextlib.AsyncExitStack() as stack,
    ):
        api, seen = Api(client, lambda: 5.0), Seen(client)
        for work in (seen.run(), say_ready(kubelet)):
            stack.callback(asyncio.ensure_future(work).cancel)
        began = time.monotonic()
        operator = Operator(cluster.kubeconfig, folder)
        stack.callback(lambda: operator.process.kill())
        await until(operator.leads, "the lease")
        print(f"  cold start, to the lease: {time.monotonic() - began:.1f} s")

        idcs = count - NAMESPACES
        began, before = time.monotonic(), await operator.counts()
        await apply_all(api, wanted(count))
        print(f"  {count} objects applied in {time.monotonic() - began:.1f} s", flush=True)
        await until(lambda: seen.count("Serving") == idcs, f"{count} objects served")
        print(f"  all children made, all Serving after {time.monotonic() - began:.1f} s")
        print(f"  meanwhile {(await operator.counts()).since(before).line()}", flush=True)
        await asyncio.sleep(10)

        took = await edited(api, seen, edits)
        p95 = statistics.quantiles(took, n=20)[-1]
        print(
            f"  event to status, of {edits} edits, one each {EVERY_S:g} s: median "
            f"{statistics.median(took):.2f} s, p95 {p95:.2f} s, at most {max(took):.2f} s "
            f"(aim: p95 {AIM_S:g} s)",
            flush=True,
        )
        await asyncio.sleep(5)
        before = await operator.counts()
        await asyncio.sleep(QUIET_S)
        quiet = (await operator.counts()).since(before)
        print(f"  {QUIET_S:g} s in which nothing happens: {quiet.line()}")
        rss = operator.rss_mib()
        print(f"  memory of the operator: {rss:.0f} MiB", flush=True)

        await operator.stop()
        began = time.monotonic()
        operator = Operator(cluster.kubeconfig, folder)
        await until(operator.leads, "the lease")
        led = time.monotonic() - began
        await operator.looked(idcs)
        print(
            f"  another one takes them up: the lease after {led:.1f} s, all looked at after "
            f"{time.monotonic() - began:.1f} s"
        )
        counts = await operator.counts()
        print(f"  {counts.line()}", flush=True)
        await operator.stop()
        return {
            "event to status, p95": p95,
            "calls a minute": quiet.calls.total(),
            "memory, MiB": rss,
        }


async def edited(api: Api, seen: Seen, count: int) -> list[float]:
    """Seconds from each edit's answer until the status speaks of it."""
    keys = sorted(seen.phases)[:: max(1, len(seen.phases) // count)][:count]

    async def one(number: int, key: tuple[str, str]) -> float:
        await asyncio.sleep(number * EVERY_S)
        namespace, name = key
        change = {"spec": {"resources": {"cpu": "70m"}}}
        metadata = {"name": name, "namespace": namespace}
        head = {"apiVersion": API_VERSION, "kind": "IDC", "metadata": metadata}
        made = await api.apply(head | change, manager="bench-edit")
        began, generation = time.monotonic(), made["metadata"]["generation"]
        await until(lambda: seen.observed[key] >= generation, f"the status of {name}")
        return time.monotonic() - began

    return list(await asyncio.gather(*(one(n, key) for n, key in enumerate(keys))))


def served(cluster: Cluster, folder: Path) -> dict[str, float]:
    """From the object of an IDC to its serving, in a pod that runs."""
    with lab.running(cluster, folder) as pods:
        part = pods.idcs[0]
        kept = json.loads(pods.kubectl(part, "get", "idc", part, "-o", "json"))
        pods.kubectl(part, "delete", "idc", part)
        pods.kubectl(part, "wait", "--for=delete", f"pod/{pods.workload(part)}-0", "--timeout=60s")
        kept = {
            "apiVersion": API_VERSION, "kind": "IDC", "metadata": {"name": part},
            "spec": kept["spec"],
        }  # fmt: skip
        began = time.monotonic()
        pods.apply(part, kept)
        pods.wait_ready(part)
        took = time.monotonic() - began
    print(f"  from kubectl apply of an IDC to its serving: {took:.1f} s", flush=True)
    return {"from apply to serving, s": took}


async def run(quick: bool) -> None:
    found = programs.find()
    if found is None:
        print(f"  not run: {programs.missing()}")
        return
    with tempfile.TemporaryDirectory(prefix="bench-operator-") as name:
        folder = Path(name)
        with programs.getting():
            archive = await asyncio.to_thread(image.build)
        with running(found, folder) as cluster:
            cluster.load(archive)
            await asyncio.to_thread(served, cluster, folder)
            await thousand(cluster, folder, *((100, 20) if quick else (1_000, 200)))
