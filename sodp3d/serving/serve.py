"""Let robots plan with a planner, over the network: msgpack over WebSocket, as `openpi-client` speaks it.

    sodp3d serve run=outputs/finetune/adroit_door-pointcloud-sodp/<time>-s0
    SODP3D_TOKEN=<16 characters or more> sodp3d serve run=<planner> host=0.0.0.0 max_age=0.2

Stops at SIGINT or SIGTERM; clients are told. GET /healthz and /metrics answer on the same port.
"""

import asyncio
import logging
import os
import signal
from typing import Any

from sodp3d.core.cli import command
from sodp3d.core.errors import InputError
from sodp3d.core.sections import read_keys
from sodp3d.core.stopping import SIGNALS, Stopped, on_signal, stop_at_once
from sodp3d.settings import CommonSettings, ServeSettings

log = logging.getLogger(__name__)
TOKEN = "SODP3D_TOKEN"  # the environment variable


@command("serve")
def main(config: dict[str, Any]) -> None:
    """Serve the planner that `run=` names, until a signal."""
    read_keys(CommonSettings, config)
    settings = read_keys(ServeSettings, config)
    token = settings.token if settings.token is not None else os.environ.get(TOKEN) or None
    settings.require_safe(token)
    if not settings.run:
        raise InputError("run: name a planner, run=<run dir or checkpoint>.")
    from sodp3d.core.device import prepare_torch
    from sodp3d.serving.planning import load_served, require_packages

    require_packages()
    device = prepare_torch(config)
    served = load_served(settings.run, device, settings.best_of, settings.sampling_steps, settings.backend)
    served.warm_up()
    raise Stopped(asyncio.run(_serve(served, settings, token)))


async def _serve(served: Any, settings: ServeSettings, token: str | None) -> int:
    """Serve until a signal comes; returns its number."""
    from sodp3d.serving.server import PolicyServer

    loop = asyncio.get_running_loop()
    stopped: asyncio.Future[int] = loop.create_future()

    def stop(number: int) -> None:
        if stopped.done():
            raise Stopped(number)  # the second one does not wait for clients
        stopped.set_result(number)

    heeded = [number for number in SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
    with on_signal(stop_at_once):  # puts back what was there
        for number in heeded:
            # The loop's own way: it wakes the loop whichever thread the signal comes to.
            loop.add_signal_handler(number, stop, number)
        async with PolicyServer(served, settings, token) as server:
            names = ", ".join(served.state["tasks"])
            log.info("serving a planner of %s at %s%s", names, server.url, "" if token is None else ", with a token")
            came = await stopped
        for number in heeded:
            loop.remove_signal_handler(number)
        if line := server.metrics.line():
            log.info("%s", line)
    return came


if __name__ == "__main__":
    main()
