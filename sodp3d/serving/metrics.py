"""What a server has done: for people a line now and then, for Prometheus a page of text."""

import bisect
import itertools
from collections import Counter, deque
from collections.abc import Iterator

import numpy as np

BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)  # seconds
OUTCOMES = ("planned", "remembered", "reset", "refused", "failed")
_KEPT = 10_000  # latencies between two lines; of more, the newest


class Histogram:
    """How often a duration fell below each of BOUNDS, as Prometheus counts them."""

    def __init__(self) -> None:
        self.counts, self.total = [0] * (len(BOUNDS) + 1), 0.0

    def add(self, seconds: float) -> None:
        """Count one duration."""
        self.counts[bisect.bisect_left(BOUNDS, seconds)] += 1
        self.total += seconds

    def lines(self, name: str, what: str) -> Iterator[str]:
        """The histogram in Prometheus' text format."""
        yield from _head(name, what, "histogram")
        for bound, count in zip([*map(str, BOUNDS), "+Inf"], itertools.accumulate(self.counts), strict=True):
            yield f'{name}_bucket{{le="{bound}"}} {count}'
        yield f"{name}_sum {self.total:.6f}"
        yield f"{name}_count {sum(self.counts)}"


class Metrics:
    """Counts since the server began, and latencies since the last line."""

    def __init__(self) -> None:
        self.requests: Counter[str] = Counter(dict.fromkeys(OUTCOMES, 0))
        self.connections: Counter[str] = Counter({"accepted": 0, "refused": 0})
        self.clients = self.waiting = self.plans = self.rows = 0
        self.latency, self.planning = Histogram(), Histogram()
        self._recent: deque[float] = deque(maxlen=_KEPT)
        self._before: Counter[str] = Counter()

    def answered(self, outcome: str, seconds: float) -> None:
        """Count one request, by one of OUTCOMES; seconds: from its arrival to its answer."""
        self.requests[outcome] += 1
        if outcome == "planned":
            self.latency.add(seconds)
            self._recent.append(seconds)

    def planned(self, rows: int, seconds: float) -> None:
        """Count one call of the planner, for `rows` observations."""
        self.plans += 1
        self.rows += rows
        self.planning.add(seconds)

    def line(self) -> str | None:
        """What was done since the last line; None where nothing was."""
        new, self._before = self.requests - self._before, Counter(self.requests)
        recent = np.array(self._recent)
        self._recent.clear()
        if not new:
            return None
        counts = ", ".join(f"{new[outcome]} {outcome}" for outcome in OUTCOMES if new[outcome])
        if not len(recent):
            return f"{self.clients} clients: {counts}"
        p50, p99 = np.percentile(1000 * recent, (50, 99))
        each = self.rows / self.plans
        return (
            f"{self.clients} clients: {counts}; latency p50 {p50:.1f} ms, p99 {p99:.1f} ms; {each:.1f} plans in a call"
        )

    def page(self) -> str:
        """Everything in Prometheus' text format."""
        lines = [*_head("sodp3d_requests_total", "messages, by how they were answered", "counter")]
        lines += [f'sodp3d_requests_total{{outcome="{key}"}} {count}' for key, count in self.requests.items()]
        lines += _head("sodp3d_connections_total", "connections, by whether they were let in", "counter")
        lines += [f'sodp3d_connections_total{{outcome="{key}"}} {count}' for key, count in self.connections.items()]
        for name, what, kind, value in (
            ("sodp3d_clients", "clients that are connected", "gauge", self.clients),
            ("sodp3d_waiting", "requests that wait for a plan", "gauge", self.waiting),
            ("sodp3d_rows_total", "observations that were planned from", "counter", self.rows),
        ):
            lines += [*_head(name, what, kind), f"{name} {value}"]
        lines += self.latency.lines("sodp3d_latency_seconds", "from a message's arrival to its actions")
        lines += self.planning.lines("sodp3d_plan_seconds", "of one call of the planner")
        return "\n".join(lines) + "\n"


def _head(name: str, what: str, kind: str) -> list[str]:
    return [f"# HELP {name} {what}", f"# TYPE {name} {kind}"]
