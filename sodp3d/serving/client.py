"""Clients of a served planner: one that asks and waits, and one whose robot never waits.

`PolicyClient` sends an observation and gets a chunk of actions. `ActionStream` gives one action for each control step:
it asks for the next plan while the last is executed, and blends the two where they overlap. Neither needs PyTorch.

Shape letters: To observed steps, Tp planned steps, Ta executed steps, Da actions.
"""

import logging
import math
import os
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.serving.wire import pack, unpack
from sodp3d.vision.camera import POSE

log = logging.getLogger(__name__)
BLENDS = ("crossfade", "ensemble", "none")
_CAMERA = ("intrinsics", POSE)  # of depth; a server takes them as told until another is
Observation = Mapping[str, Any]


class PolicyClient:
    """A connection to a served planner; a context manager.

    Args:
        url: ws://host:port. token: what the server asks for; None: the variable SODP3D_TOKEN.
        timeout: seconds to wait for the server's answer.

    Raises InputError where there is no server, or one that lets nobody in.
    """

    def __init__(self, url: str, token: str | None = None, timeout: float = 60.0) -> None:
        connect, self._failures = _websockets()
        token = token or os.environ.get("SODP3D_TOKEN")
        headers = {"Authorization": f"Bearer {token}"} if token else None
        self.url, self._timeout, self._open = url, timeout, ExitStack()
        try:
            self._connection = self._open.enter_context(
                connect(url, additional_headers=headers, compression=None, max_size=None, open_timeout=timeout)
            )
        except self._failures as error:
            raise InputError(f"server: cannot connect to {url} ({error}).") from None
        try:
            self.metadata: dict[str, Any] = self._receive()
            # Behind by the way here, so that an observation seems too old rather than too fresh.
            self._ahead = self._server_time() - time.time()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "PolicyClient":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the connection."""
        self._open.close()

    def now(self) -> float:
        """The server's clock, UNIX seconds: an observation's `timestamp`."""
        return time.time() + self._ahead

    def infer(self, observation: Observation, **options: Any) -> dict[str, Any]:
        """Send an observation, with options of the wire format (`whole_plan=True`, `offset=2`); returns the answer.

        Its "actions" are (Ta, Da). Raises InputError with what the server says is wrong; the connection stays.
        """
        message = pack({**observation, **options})  # what cannot be written is no fault of the connection
        try:
            self._connection.send(message)
        except self._failures as error:
            raise InputError(f"server: {self.url} has closed the connection ({error}).") from None
        return self._receive()

    def observe(self, observation: Observation) -> None:
        """Let the server remember a step that nothing is planned from."""
        self.infer(observation, plan=False)

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode: the server forgets what it was shown. With a seed, the same observations give the same
        actions again, those of an evaluation's episode with that seed.
        """
        self.infer({"reset": True} if seed is None else {"reset": True, "seed": seed})

    def _server_time(self) -> float:
        told = self.metadata.get("server_time", time.time())
        if isinstance(told, bool) or not isinstance(told, int | float) or not math.isfinite(told):
            raise InputError(f"server: {self.url} does not serve a planner (server_time: expected seconds).")
        return float(told)

    def _receive(self) -> dict[str, Any]:
        try:
            answer = self._connection.recv(self._timeout)
        except TimeoutError:
            self.close()  # the answer would come later, and be taken for that of another observation
            raise InputError(f"server: no answer from {self.url} within {self._timeout:g} s.") from None
        except self._failures as error:
            raise InputError(f"server: {self.url} has closed the connection ({error}).") from None
        if isinstance(answer, str):
            raise InputError(answer)
        found = unpack(answer)
        if not isinstance(found, dict):
            raise InputError(f"server: {self.url} does not serve a planner (it sent a {type(found).__name__}).")
        return found


def _websockets() -> tuple[Any, tuple[type[Exception], ...]]:
    """How to connect, and what goes wrong with connections. Raises InputError where the package is missing."""
    try:
        from websockets.exceptions import WebSocketException
        from websockets.sync.client import connect
    except ImportError:
        raise InputError("server: a package is missing; pip install websockets msgpack (the extra serve).") from None
    return connect, (WebSocketException, OSError, ValueError)


class Planning(Protocol):
    """What an `ActionStream` asks: a `PolicyClient`, or anything that plans."""

    metadata: dict[str, Any]

    def infer(self, observation: Observation, **options: Any) -> dict[str, Any]:
        """The answer to an observation of To steps, with "plan" (Tp, Da)."""
        ...

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode."""
        ...


class ActionStream:
    """One action for each control step, from plans that are made while the robot moves; a context manager.

    A plan reaches from the step it was asked at to the end of its horizon. Every `every` steps another is asked for,
    with the last To observations; a thread waits for it. Until it comes, the plans before it are executed. Where
    several reach a step, they are blended:

    * crossfade: the newest plan's share rises evenly, over `overlap` steps from the first at which it is there, to all.
    * ensemble: the mean of all plans, weighted exp(-decay * i), i = 0 for the oldest (temporal ensembling, ACT). A
      positive decay trusts old plans, a negative one new ones.
    * none: the newest plan alone.

    Where no plan reaches a step, `act` waits for the next one and counts it in `stalls`: plans come too late for the
    control rate, so let `every` be smaller or the horizon longer.

    Args:
        client: who plans. every: steps from one request to the next; None: half of what a plan has ahead, at least 1.
        overlap: steps of a crossfade. decay: of an ensemble.
    """

    def __init__(
        self,
        client: Planning,
        every: int | None = None,
        blend: str = "crossfade",
        overlap: int = 2,
        decay: float = 0.0,
    ) -> None:
        planner = client.metadata.get("planner")
        if not isinstance(planner, Mapping) or not {"n_obs_steps", "horizon"} <= set(planner):
            raise InputError("server: it does not say how many steps it observes and plans; is it one of sodp3d?")
        self._observed, horizon = int(planner["n_obs_steps"]), int(planner["horizon"])
        ahead = horizon - self._observed + 1
        every = max(1, ahead // 2) if every is None else every
        if blend not in BLENDS:
            raise InputError(f"blend: expected one of {', '.join(BLENDS)}, got {blend!r}.")
        if not 1 <= every <= ahead:
            raise InputError(f"every: expected 1 to {ahead} steps, which is how far a plan reaches, got {every}.")
        if overlap < 0 or not math.isfinite(decay):
            raise InputError(f"overlap, decay: expected steps of at least 0 and a number, got {overlap} and {decay}.")
        self._client, self._every, self._blend, self._overlap, self._decay = client, every, blend, overlap, decay
        self._thread = ThreadPoolExecutor(1, "plans")
        self._camera: dict[str, Any] = {}  # as it was told last, until another is
        self._pending: tuple[int, Future[NDArray[np.float32]]] | None = None
        self.stalls = 0
        self._start()

    def __enter__(self) -> "ActionStream":
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown(wait=True)

    def _start(self) -> None:
        self._step, self._asked = 0, -self._every
        self._shown: deque[Observation] = deque(maxlen=self._observed)
        self._plans: list[_Plan] = []

    def reset(self, seed: int | None = None) -> None:
        """Begin an episode; a plan that is on its way is waited for and thrown away."""
        if self._pending is not None:
            self._pending[1].exception()
            self._pending = None
        self._start()
        self._client.reset(seed)

    def act(self, observation: Observation) -> NDArray[np.float32]:
        """The action (Da,) of this control step, given what is seen now, without a time axis.

        Call it once a step. A camera that is told stands until another is. What the server refuses is logged, and
        another plan asked for, as long as one that was made before reaches this step; then it raises InputError.
        """
        self._camera |= {key: observation[key] for key in _CAMERA if key in observation}
        self._shown.append({**self._camera, **observation})
        step = self._step
        try:
            self._take(wait=False)
        except InputError as error:
            log.warning("no new plan: %s", error)
            self._asked = step - self._every
        if self._pending is None and step - self._asked >= self._every:
            self._ask(step)
        if not self._reaching(step):
            self.stalls += step > 0
            self._take(wait=True)
            if not self._reaching(step):  # it was asked for too long ago
                self._ask(step)
                self._take(wait=True)
        self._step += 1
        return self._blended(self._reaching(step), step)

    def _reaching(self, step: int) -> list["_Plan"]:
        self._plans = [plan for plan in self._plans if plan.reaches(step)]
        return self._plans

    def _ask(self, step: int) -> None:
        shown = [self._shown[0]] * (self._observed - len(self._shown)) + list(self._shown)
        single = {"timestamp", "intrinsics"}  # told once, of the newest step
        # A camera that was told late holds for all of them; anything else that some lack is the server's to refuse.
        single |= {key for key in shown[-1] if any(key not in frame for frame in shown)}
        observation = {
            key: value if key in single or np.ndim(value) == 0 else np.stack([frame[key] for frame in shown])
            for key, value in shown[-1].items()
        }
        self._asked = step
        self._pending = step, self._thread.submit(self._planned, observation)

    def _planned(self, observation: Observation) -> NDArray[np.float32]:
        plan: NDArray[np.float32] = self._client.infer(observation, whole_plan=True)["plan"]
        return plan[self._observed - 1 :]

    def _take(self, wait: bool) -> None:
        """The plan that was asked for, if it is there or is waited for."""
        if self._pending is None or not (wait or self._pending[1].done()):
            return
        (asked, future), self._pending = self._pending, None
        self._plans.append(_Plan(asked, self._step, future.result()))

    def _blended(self, plans: list["_Plan"], step: int) -> NDArray[np.float32]:
        """plans: oldest first, all reaching this step."""
        actions = np.stack([plan.actions[step - plan.asked] for plan in plans])
        if self._blend == "none" or len(plans) == 1:
            return np.asarray(actions[-1])
        if self._blend == "ensemble":
            weights = np.exp(-self._decay * np.arange(len(plans)))
            return np.asarray((weights / weights.sum()) @ actions, np.float32)
        blended = actions[0]
        for plan, action in zip(plans[1:], actions[1:], strict=True):
            share = min(1.0, (step - plan.came + 1) / (self._overlap + 1))
            blended = (1 - share) * blended + share * action
        return np.asarray(blended, np.float32)


class _Plan:
    def __init__(self, asked: int, came: int, actions: NDArray[np.float32]) -> None:
        self.asked, self.came, self.actions = asked, came, actions  # steps; (ahead, Da) from `asked` on

    def reaches(self, step: int) -> bool:
        return self.asked <= step < self.asked + len(self.actions)
