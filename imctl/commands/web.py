"""web: a chat page for a browser, served on this machine."""

from __future__ import annotations

import asyncio
import signal
import webbrowser
from typing import Annotated

import typer

from imcore.runtime import SystemClock
from imctl import deployment
from imctl.errors import Failed
from imctl.identity import ipconf_urls, token_for
from imctl.options import Data
from imctl.web.serve import Pages


def web(
    uid: Annotated[str, typer.Argument(metavar="UID", help="The user to act as.")],
    device: Annotated[str, typer.Option(metavar="NAME", help="Device name to use.")] = "web",
    port: Annotated[
        int,
        typer.Option(metavar="PORT", min=0, max=65535, help="Port on 127.0.0.1; 0: any free port."),
    ] = 0,
    browser: Annotated[
        bool, typer.Option("--browser/--no-browser", help="Open the page in the default browser.")
    ] = True,
    data: Data = None,
) -> None:
    """Chat as a user in a browser.

    Serves a page on this machine until Ctrl-C. The page speaks the client protocol to the gateways
    over WebSocket. Keep its address secret: anyone who opens it acts as this user. One tab at a
    time is connected. The browser keeps what was not sent yet for this port: give --port to find it
    again.

    Example: imctl web ann --no-browser
    """
    target = deployment.find(data)
    session: dict[str, str | int] = {
        "uid": uid,
        "device": device,
        "token": token_for(target, uid, device, SystemClock()),
        "region": target.region.metadata.name,
        "content_bytes_max": target.region.spec.messages.content_bytes_max,
    }
    pages = Pages(session, ipconf_urls(target), target.pki / "ca.pem")
    asyncio.run(_serve(pages, port, browser))


async def _serve(pages: Pages, port: int, browser: bool) -> None:
    stop = asyncio.Event()
    for signum in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(signum, stop.set)
    try:
        await pages.start(port)
    except OSError as error:
        raise Failed(f"--port {port}: cannot listen on it: {error.strerror}") from error
    try:
        print(f"{pages.url} (Ctrl-C to stop)", flush=True)
        if browser:
            await asyncio.to_thread(webbrowser.open, pages.once)
        await stop.wait()
    finally:
        await pages.stop()
