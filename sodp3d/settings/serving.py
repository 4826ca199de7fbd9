"""How a planner is served: configs/serve.yaml."""

import ipaddress
from typing import Annotated

from pydantic import Field

from sodp3d.core.errors import InputError
from sodp3d.core.sections import Count, Expected, Name, Positive, Text, Whole, section

Port = Annotated[Whole, Field(ge=0), Field(le=65_535), Expected("a port, from 1 to 65535, or 0 for any that is free")]
SHORTEST_TOKEN = 16  # characters, where others than this machine can reach the server


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches `host`. A name that is not an address is not believed to be, but localhost."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


@section("")
class ServeSettings:
    """Which planner is served, to whom, and within which bounds; at the top of configs/serve.yaml."""

    run: Text | None = None  # a run directory or a checkpoint
    host: Name = "127.0.0.1"
    port: Port = 8000
    token: Text | None = None  # null: the variable SODP3D_TOKEN
    max_age: Positive | None = None  # seconds an observation may be old when it is planned from; null: not looked at
    max_clients: Count = 16
    max_message: Positive = 16.0  # MiB
    max_rows: Count = 64  # observations planned from in one call
    best_of: Count | None = None  # plans of which the planner's critic chooses; null: as it was tested
    sampling_steps: Count | None = None  # null: the planner's own
    backend: Text = "open3d"  # open3d | torch: who makes clouds of depth; torch does so on `device`
    log_every: Positive = 60.0  # seconds between two lines of what was served

    def require_safe(self, token: str | None) -> None:
        """Raise InputError where others than this machine could plan without a token, or with one easily guessed."""
        if token is not None and not (token.isascii() and token.isprintable() and " " not in token and token):
            raise InputError("token: expected printable ASCII characters without spaces.")
        if is_loopback(self.host) or (token is not None and len(token) >= SHORTEST_TOKEN):
            return
        came = "none" if token is None else f"one of {len(token)}"
        raise InputError(
            f"token: host={self.host} lets other machines in, which needs a token of at least {SHORTEST_TOKEN} "
            f"characters, got {came}; set the variable SODP3D_TOKEN, or use host=127.0.0.1."
        )
