"""Asks ipconf which gateways to dial. One client can serve many SDK clients of a process."""

from __future__ import annotations

import asyncio
import random
import ssl
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import aiohttp

from imcore.errors import BadInput
from imcore.tls import client_ssl_context
from imcore.words import IDC_HEADER
from services.sdk.core.parameters import Parameters
from services.sdk.errors import AuthError

STAGGER_S = 0.2  # the next ipconf is asked when the ones before have not answered for as long
TIMEOUT_S = 2.0
CELLULAR_TIMEOUT_S = 5.0  # over a 2G network the answer takes three round trips of 0.6 s and more
NEWER_WAIT_S = 0.5  # an answer of an older policy than asked for is not held back for longer


class Gateway(NamedTuple):
    idc: str
    name: str
    host: str
    port: int


@dataclass(frozen=True, slots=True)
class Answer:
    policy_epoch: int
    stale: bool  # that ipconf sees no majority of the registries
    placement: bytes
    gateways: tuple[Gateway, ...]  # best first
    parameters: Parameters
    media: tuple[str, ...] = ()  # URLs for files, best first


class NoAnswer(Exception):
    """No ipconf gave a usable answer. ``overloaded``: too many ask, and what is to be done is to
    wait; to go elsewhere, or to a gateway that was named before, would go around the limit."""

    def __init__(self, message: str, retry_after_ms: int = 0, overloaded: bool = False) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms
        self.overloaded = overloaded


class Lookup(NamedTuple):
    token: str
    network: str = "unknown"
    last: str = ""  # the gateway of the last connection
    forwarded_for: str = ""  # believed only from addresses that the region file lists
    policy_epoch_min: int = 0
    connect_ms: int | None = None  # what the client's own took, in this network; None: not known
    heartbeat_ms: int | None = None


class _Refused(AuthError):
    """``idc``: whose ipconf said so."""

    def __init__(self, message: str, idc: str) -> None:
        super().__init__(message)
        self.idc = idc


class IpconfClient:
    """``urls``: any IDC's ipconf will do; give all of them. ``ca_file``: the region's CA; None: the
    machine's usual ones. ``connector``: another way to the network. ``close`` when done. Raises
    BadInput for an URL that the token would travel to in plain text (but on this machine), or that
    is none."""

    def __init__(
        self,
        urls: Sequence[str],
        ca_file: str | Path | None,
        rng: random.Random,
        connector: Callable[[], aiohttp.BaseConnector] | None = None,
    ) -> None:
        if not urls:
            raise ValueError("expected at least one ipconf URL")
        self._urls = [_checked(url) for url in urls]
        # The token goes to whoever answers: never without a certificate that is checked.
        self.tls: ssl.SSLContext = (
            client_ssl_context(Path(ca_file)) if ca_file else ssl.create_default_context()
        )
        self._rng = rng
        self._connector = connector or self._by_tcp
        self._http: aiohttp.ClientSession | None = None
        self._reports: set[asyncio.Task[None]] = set()

    def _session(self) -> aiohttp.ClientSession:
        if self._http is None or self._http.closed:
            self._http = aiohttp.ClientSession(
                connector=self._connector(), timeout=aiohttp.ClientTimeout(total=TIMEOUT_S)
            )
        return self._http

    def _by_tcp(self) -> aiohttp.BaseConnector:
        return aiohttp.TCPConnector(ssl=self.tls, limit_per_host=16)

    async def close(self) -> None:
        for task in list(self._reports):
            task.cancel()
        await asyncio.gather(*self._reports, return_exceptions=True)
        if self._http is not None:
            await self._http.close()

    async def lookup(self, lookup: Lookup) -> Answer:
        """The first good answer; one with a policy older than asked for only when there is no
        other. One that is overloaded ends the search. Raises NoAnswer, AuthError."""
        urls = list(self._urls)
        self._rng.shuffle(urls)
        tasks: set[asyncio.Task[Answer]] = set()
        failures: list[BaseException] = []
        older: Answer | None = None
        try:
            while urls or tasks:
                if urls:
                    tasks.add(asyncio.ensure_future(self._ask(urls.pop(), lookup)))
                last_wait_s = None if older is None else NEWER_WAIT_S
                done, tasks = await asyncio.wait(
                    tasks,
                    timeout=STAGGER_S if urls else last_wait_s,
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if older is not None and not done and not urls:
                    break
                failed = {task for task in done if task.exception() is not None}
                failures += [error for task in failed if (error := task.exception())]
                for task in done - failed:
                    answer = task.result()
                    if answer.policy_epoch >= lookup.policy_epoch_min and answer.gateways:
                        return answer
                    if answer.gateways and (
                        older is None or answer.policy_epoch > older.policy_epoch
                    ):
                        older = answer
                turned_away = (e for e in failures if isinstance(e, NoAnswer) and e.overloaded)
                if older is None and (overloaded := next(turned_away, None)) is not None:
                    raise overloaded
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        if older is not None:
            return older
        raise self._failure(failures)

    def _failure(self, failures: list[BaseException]) -> Exception:
        """A refused token is one IDC's word, however many ipconfs it has, and its clock may be
        wrong: it takes two of them, or all that are known."""
        refusals = [error for error in failures if isinstance(error, _Refused)]
        if len({error.idc for error in refusals}) > 1 or len(refusals) == len(self._urls):
            return refusals[0]
        waits = [e.retry_after_ms for e in failures if isinstance(e, NoAnswer)]
        reasons = "; ".join(sorted({str(e) or type(e).__name__ for e in failures}))
        return NoAnswer(reasons or "no ipconf knows a gateway", max(waits, default=0))

    async def _ask(self, url: str, lookup: Lookup) -> Answer:
        headers = {"Authorization": f"Bearer {lookup.token}"}
        if lookup.forwarded_for:
            headers["X-Forwarded-For"] = lookup.forwarded_for
        query = {"network": lookup.network, "last": lookup.last}
        if lookup.connect_ms is not None:
            query["connect_ms"] = str(lookup.connect_ms)
        if lookup.heartbeat_ms is not None:
            query["heartbeat_ms"] = str(lookup.heartbeat_ms)
        try:
            async with self._session().get(
                f"{url}/v1/gateways", params=query, headers=headers, timeout=_timeout(lookup)
            ) as response:
                document = await response.json()
                if response.status == 200:
                    return _answer(document)
                error = document.get("error", {})
                message = f"{url}: {error.get('message', response.status)}"
                if response.status == 401:
                    raise _Refused(message, response.headers.get(IDC_HEADER, url))
                wait_ms = int(error.get("retry_after_ms") or 0)
                raise NoAnswer(message, wait_ms, overloaded=response.status == 429)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise NoAnswer(f"{url}: {error or type(error).__name__}") from error
        except (ValueError, KeyError, TypeError, AttributeError, BadInput) as error:
            raise NoAnswer(f"{url}: the answer is not an ipconf's") from error

    def request(
        self, method: str, url: str, **more: Any
    ) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Of what else is served over HTTPS where ipconf says."""
        return self._session().request(method, url, **more)

    def report(self, lookup: Lookup, gateway: Gateway, failure: str) -> None:
        """Tell an ipconf that a gateway cannot be used: evidence for the failover. Best effort."""
        task = asyncio.ensure_future(self._report(lookup, gateway, failure))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _report(self, lookup: Lookup, gateway: Gateway, failure: str) -> None:
        body = {"reports": [{"gateway": gateway.name, "idc": gateway.idc, "failure": failure}]}
        headers = {"Authorization": f"Bearer {lookup.token}"}
        for url in self._rng.sample(self._urls, len(self._urls)):
            try:
                async with self._session().post(
                    f"{url}/v1/reports", json=body, headers=headers, timeout=_timeout(lookup)
                ) as response:
                    if response.status < 300:
                        return
            except (aiohttp.ClientError, TimeoutError, OSError):
                continue


def _timeout(lookup: Lookup) -> aiohttp.ClientTimeout:
    total_s = CELLULAR_TIMEOUT_S if lookup.network == "cellular" else TIMEOUT_S
    return aiohttp.ClientTimeout(total=total_s)


def _checked(url: str) -> str:
    parts = urlsplit(url)
    if not parts.hostname or parts.scheme not in ("https", "http"):
        raise BadInput(f"{url}: expected the URL of an ipconf, such as https://HOST:PORT")
    if parts.scheme == "http" and not _is_loopback(parts.hostname):
        raise BadInput(f"{url}: expected https://, or the token would be sent in plain text")
    return url.rstrip("/")


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"  # any other name may come to mean any address


def _answer(document: Mapping[str, Any]) -> Answer:
    return Answer(
        int(document["policy_epoch"]),
        bool(document.get("stale", False)),
        str(document.get("placement", "")).encode(),
        tuple(
            Gateway(str(g["idc"]), str(g["gateway"]), str(g["host"]), int(g["port"]))
            for g in document["gateways"]
        ),
        Parameters.of(document.get("parameters", {})),
        tuple(_checked(str(row["url"])) for row in document.get("media", ())),
    )
