"""The server: WebSocket connections, one queue, one planner.

Each client has at most one message in work and two that wait; who sends more is not read from until those are answered.
So memory is bounded by `max_clients` times a few messages. Observations that wait together are planned in one call.
"""

import asyncio
import hmac
import http
import logging
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from sodp3d.core.errors import InputError
from sodp3d.serving.metrics import Metrics
from sodp3d.serving.planning import Rows, ServedPlanner
from sodp3d.serving.session import Request, Session
from sodp3d.serving.wire import pack, unpack
from sodp3d.settings import ServeSettings

log = logging.getLogger(__name__)
_WAITING_FRAMES = 2  # of one client
_PROMETHEUS = "text/plain; version=0.0.4; charset=utf-8"


@dataclass
class _Waiting:
    rows: Rows
    fresh: Callable[[], None]  # raises InputError where the observation has become too old meanwhile
    plan: "asyncio.Future[NDArray[np.float32]]"
    arrived: float
    started: float = 0.0


class Queue:
    """Requests that wait for the planner, and the task that plans for all of them at once."""

    def __init__(self, served: ServedPlanner, metrics: Metrics, max_rows: int) -> None:
        self._served, self._metrics, self._max_rows = served, metrics, max_rows
        self._waiting: deque[_Waiting] = deque()
        self._some = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "planner")

    async def plan(self, rows: Rows, fresh: Callable[[], None]) -> tuple[NDArray[np.float32], float, float]:
        """Plans (B, Tp, Da), and the seconds that they waited and took. Raises InputError as `fresh` does."""
        entry = _Waiting(rows, fresh, asyncio.get_running_loop().create_future(), time.perf_counter())
        self._waiting.append(entry)  # one for each client at most
        self._metrics.waiting = len(self._waiting)
        self._some.set()
        plan = await entry.plan
        return plan, entry.started - entry.arrived, time.perf_counter() - entry.started

    async def work(self) -> None:
        """Plan for who waits, until cancelled."""
        loop = asyncio.get_running_loop()
        while True:
            await self._some.wait()
            batch = self._next()
            if not batch:
                continue
            start = time.perf_counter()
            for entry in batch:
                entry.started = start
            try:
                plans = await loop.run_in_executor(self._thread, self._served.plan, [entry.rows for entry in batch])
            except Exception as error:
                log.exception("planning failed")
                for entry in batch:
                    if not entry.plan.done():
                        entry.plan.set_exception(error)
                continue
            self._metrics.planned(sum(len(entry.rows) for entry in batch), time.perf_counter() - start)
            for entry, plan in zip(batch, plans, strict=True):
                if not entry.plan.done():
                    entry.plan.set_result(plan)

    def _next(self) -> list[_Waiting]:
        """Those who waited longest, as far as their rows fit into one call; the stale ones are told."""
        batch: list[_Waiting] = []
        rows = 0
        while self._waiting and (not batch or rows + len(self._waiting[0].rows) <= self._max_rows):
            entry = self._waiting.popleft()
            if entry.plan.done():  # its client has gone
                continue
            try:
                entry.fresh()
            except InputError as error:
                entry.plan.set_exception(error)
                continue
            batch.append(entry)
            rows += len(entry.rows)
        self._metrics.waiting = len(self._waiting)
        if not self._waiting:
            self._some.clear()
        return batch

    def close(self) -> None:
        """End the planner's thread, after the call that it is in."""
        self._thread.shutdown(wait=True, cancel_futures=True)


class PolicyServer:
    """Serves one planner to several clients; `async with` listens, and closes connections at the end.

    Args:
        served: the planner. settings: bounds, host and port. token: what clients must show; None for none.
    Raises InputError where others than this machine could connect without a token, or the port is taken.
    """

    def __init__(self, served: ServedPlanner, settings: ServeSettings, token: str | None = None) -> None:
        settings.require_safe(token)
        self.metrics = Metrics()
        self._served, self._settings = served, settings
        self._token = None if token is None else token.encode()
        self._limit = int(settings.max_message * 2**20)

    async def __aenter__(self) -> "PolicyServer":
        import websockets.asyncio.server as websockets

        settings, quiet = self._settings, logging.getLogger("sodp3d.serving.connections")
        quiet.setLevel(logging.CRITICAL)  # what strangers do wrong is counted, not told at length
        self._queue = Queue(self._served, self.metrics, settings.max_rows)
        try:
            self._server = await websockets.serve(
                self._client, settings.host, settings.port, process_request=self._admit, origins=[None],
                compression=None, max_size=self._limit, max_queue=_WAITING_FRAMES, close_timeout=2, logger=quiet,
                server_header=None,
            )  # fmt: skip
        except OSError as error:
            told = error.strerror or error
            raise InputError(
                f"port: cannot listen on {settings.host}:{settings.port} ({told}); choose another."
            ) from None
        self._tasks = [asyncio.create_task(self._queue.work()), asyncio.create_task(self._report())]
        return self

    async def __aexit__(self, *_: object) -> None:
        self._server.close()
        await self._server.wait_closed()  # for clients whose plan is under way; then nobody waits for the queue
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._queue.close()

    @property
    def url(self) -> str:
        """Where clients connect, with the port that was taken."""
        host, port = self._server.sockets[0].getsockname()[:2]
        return f"ws://[{host}]:{port}" if ":" in host else f"ws://{host}:{port}"

    def _admit(self, connection: Any, request: Any) -> Any:
        """None where a client may connect; else the answer to a GET, or why not."""
        path = request.path.partition("?")[0]
        if path == "/healthz":
            return connection.respond(http.HTTPStatus.OK, "OK\n")
        if not self._authorized(request.headers.get_all("Authorization")):
            self.metrics.connections["refused"] += 1
            return connection.respond(
                http.HTTPStatus.UNAUTHORIZED, "a token is needed: Authorization: Bearer <token>\n"
            )
        if path == "/metrics":
            response = connection.respond(http.HTTPStatus.OK, self.metrics.page())
            del response.headers["Content-Type"]
            response.headers["Content-Type"] = _PROMETHEUS
            return response
        if path != "/":
            return connection.respond(http.HTTPStatus.NOT_FOUND, "here are /, /healthz and /metrics\n")
        if self.metrics.clients >= self._settings.max_clients:
            self.metrics.connections["refused"] += 1
            return connection.respond(
                http.HTTPStatus.SERVICE_UNAVAILABLE,
                f"{self.metrics.clients} clients are connected, which is the most\n",
            )
        return None

    def _authorized(self, given: list[str]) -> bool:
        """Whether one of the headers shows the token, in a time that does not tell how much of it was right."""
        if self._token is None:
            return True
        shown = [header.partition(" ")[2].strip().encode() for header in given]
        return any([hmac.compare_digest(token, self._token) for token in shown])  # noqa: C419 - all are compared

    async def _client(self, connection: Any) -> None:
        """One client from its first message to its last."""
        from websockets.exceptions import ConnectionClosed

        settings = self._settings
        session = Session(self._served, settings.max_age, settings.max_rows)
        if self.metrics.clients >= settings.max_clients:  # several shook hands at once
            self.metrics.connections["refused"] += 1
            await connection.close(1013, "as many clients are connected as may be")
            return
        self.metrics.clients += 1
        self.metrics.connections["accepted"] += 1
        try:
            await connection.send(pack(self._metadata()))
            total = None
            async for message in connection:
                start = time.perf_counter()
                outcome, answer = await self._answer(session, message, total)
                await connection.send(answer)
                total = time.perf_counter() - start
                self.metrics.answered(outcome, total)
        except ConnectionClosed:
            pass  # it left, died, or broke the protocol; nothing of it remains
        finally:
            self.metrics.clients -= 1

    async def _answer(self, session: Session, message: str | bytes, total: float | None) -> tuple[str, str | bytes]:
        """How a message is counted, and its answer: packed, or a text that says what is wrong."""
        try:
            if isinstance(message, str):
                raise InputError("message: expected msgpack in a binary message, got a text.")
            with session.undone_on_error():  # what is refused after it was taken was never shown either
                return await self._done(session, message, total)
        except InputError as error:
            return "refused", str(error)
        except Exception as error:
            log.exception("a message could not be answered")
            return "failed", f"server: internal error ({type(error).__name__}); its log says more."

    async def _done(self, session: Session, message: bytes, total: float | None) -> tuple[str, bytes]:
        """How a message is counted, and its packed answer. Raises InputError for what is refused."""
        begin = time.perf_counter()
        # In a thread, because clouds of depth take milliseconds in which others would wait.
        request = await asyncio.to_thread(_taken, session, message)
        if request.rows is None:
            kind = "remembered" if request.remembered else "reset"
            return kind, pack({kind: request.remembered or True})
        timing = {"read_ms": 1000 * (time.perf_counter() - begin)}
        plan, waited, took = await self._queue.plan(request.rows, lambda: session.require_fresh(request.taken))
        timing |= {"queue_ms": 1000 * waited, "infer_ms": 1000 * took}
        timing |= {} if total is None else {"prev_total_ms": 1000 * total}
        return "planned", pack({**self._actions(request, plan), "server_timing": timing})

    def _actions(self, request: Request, plan: NDArray[np.float32]) -> dict[str, NDArray[np.float32]]:
        """What of plans (B, Tp, Da) was asked for. Raises InputError where they are not finite."""
        if not np.isfinite(plan).all():
            raise InputError("plan: it is not finite, so the observation is far from all that the planner has learned.")
        steps = self._served.config.executed_steps
        start = steps.start + request.offset
        wanted = {"actions": plan[:, start : start + steps.stop - steps.start]}
        if request.whole_plan:
            wanted["plan"] = plan
        return wanted if request.batched else {key: value[0] for key, value in wanted.items()}

    def _metadata(self) -> dict[str, Any]:
        settings = self._settings
        return {
            **self._served.metadata(),
            "max_age": settings.max_age,
            "max_message_bytes": self._limit,
            "max_rows": settings.max_rows,
            "server_time": time.time(),
        }

    async def _report(self) -> None:
        while True:
            await asyncio.sleep(self._settings.log_every)
            if line := self.metrics.line():
                log.info("%s", line)


def _taken(session: Session, message: bytes) -> Request:
    return session.take(unpack(message))


@contextmanager
def serve_in_background(
    served: ServedPlanner, settings: ServeSettings, token: str | None = None
) -> Iterator[PolicyServer]:
    """A server in a thread of its own, inside the block: for notebooks, measurements and tests."""
    loop = asyncio.new_event_loop()
    started: Future[PolicyServer] = Future()
    ended = asyncio.Event()

    async def run() -> None:
        try:
            async with PolicyServer(served, settings, token) as server:
                started.set_result(server)
                await ended.wait()
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    def work() -> None:
        with asyncio.Runner(loop_factory=lambda: loop) as runner:
            runner.run(run())

    thread = threading.Thread(target=work, name="server", daemon=True)
    thread.start()
    server = started.result()
    try:
        yield server
    finally:
        loop.call_soon_threadsafe(ended.set)
        thread.join()
