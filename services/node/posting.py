"""HTTP to the operator's own servers."""

from __future__ import annotations

import ssl
from collections.abc import Mapping
from typing import Protocol

import aiohttp

from imcore.errors import BadInput, Unavailable


class Poster(Protocol):
    """To one URL."""

    async def post(self, body: bytes, headers: Mapping[str, str]) -> int:
        """The status of the answer, whose body nobody reads. Raises Unavailable."""
        ...

    async def close(self) -> None: ...


class Http:
    """Connections are kept open between two posts; redirects are not followed: what is signed goes
    where the region file says and nowhere else. Raises BadInput."""

    def __init__(self, url: str, ca_file: str | None, timeout_s: float) -> None:
        self._url = url
        try:
            self._tls = ssl.create_default_context(cafile=ca_file)
        except (OSError, ssl.SSLError) as error:
            raise BadInput(f"{ca_file} is no PEM of a CA: {error}") from error
        self._timeout = aiohttp.ClientTimeout(total=timeout_s)
        self._session: aiohttp.ClientSession | None = None

    async def post(self, body: bytes, headers: Mapping[str, str]) -> int:
        if self._session is None:
            connector = aiohttp.TCPConnector(ssl=self._tls, limit=4)
            self._session = aiohttp.ClientSession(
                connector=connector, timeout=self._timeout, cookie_jar=aiohttp.DummyCookieJar()
            )
        try:
            async with self._session.post(
                self._url, data=body, headers=headers, allow_redirects=False
            ) as response:
                return response.status
        except TimeoutError:
            raise Unavailable("no answer in time") from None
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"no answer: {error}") from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
