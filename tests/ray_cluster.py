"""A Ray cluster of several nodes on this machine, each in a session of its own that can be killed as one.

As a script: one node, which lives until its standard input closes, so that none outlives the tests, however they end.
"""

import os
import secrets
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

STORE_BYTES = 80_000_000  # about the smallest that Ray takes
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_AUTH_MODE": "token",  # because Ray listens on all interfaces
    "RAY_AUTH_TOKEN": secrets.token_hex(32),
    "RAY_health_check_initial_delay_ms": "0",  # a dead node is noticed within two seconds, not twenty
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "4",
}


def free_port() -> int:
    """A port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


class Node:
    """Starts at once; `wait` until it is up. Its processes, Ray's workers included, are those of its session."""

    def __init__(self, *options: str) -> None:
        few = (f"--object-store-memory={STORE_BYTES}", "--include-log-monitor=false")  # starts sooner
        command = [sys.executable, __file__, *few, *options]
        self.process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
            start_new_session=True,
        )  # fmt: skip

    def wait(self) -> None:
        """Raises RuntimeError with what Ray said when it does not start."""
        assert self.process.stdout is not None
        said = []
        for line in self.process.stdout:
            if line == "up\n":
                return
            said.append(line)
        raise RuntimeError("".join(said))

    def kill(self) -> None:
        """SIGKILL to all its processes, as when the machine fails."""
        while processes := session(self.process.pid):
            for process in processes:
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.01)
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout):
            assert stream is not None
            stream.close()


class Cluster:
    """A head with one CPU, on which calls are made, and at most one other node with two. Addresses are of loopback."""

    def __init__(self, folder: str) -> None:
        """folder: Ray's own; short, because it holds sockets."""
        self.sessions: list[int] = []
        self.nodes: list[Node] = []
        port = free_port()
        self.address = f"127.0.0.2:{port}"
        ports = (f"--port={port}", f"--ray-client-server-port={free_port()}")
        self._add("--head", *ports, "--num-cpus=1", "--no-monitor", "--include-dashboard=false", f"--temp-dir={folder}")

    def grow(self) -> None:
        """Add a node."""
        self._add(f"--address={self.address}", "--num-cpus=2")

    def shrink(self) -> None:
        """Kill the node that came last."""
        self.nodes.pop().kill()

    def close(self) -> None:
        """Kill all nodes."""
        while self.nodes:
            self.shrink()
        assert not any(session(leader) for leader in self.sessions)

    def _add(self, *options: str) -> None:
        """Start a node and wait for it; again if that fails, for Ray's own deadlines are short on a busy machine."""
        for attempt in range(5):
            number = 2 + len(self.sessions) if self.nodes else 2
            self.nodes.append(Node(f"--node-ip-address=127.0.0.{number}", *options))
            self.sessions.append(self.nodes[-1].process.pid)
            try:
                return self.nodes[-1].wait()
            except RuntimeError:
                self.shrink()
                if attempt == 4:
                    raise


def session(leader: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                fields = (entry / "stat").read_text().rpartition(")")[2].split()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if int(fields[3]) == leader and fields[0] != "Z":
                found.append(int(entry.name))
    return found


def main() -> None:
    """Start a node with the given options of `ray start`, and end its session when nobody needs it any more."""
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    command = [sys.executable, "-m", "ray.scripts.scripts", "start", "--disable-usage-stats", *sys.argv[1:]]
    try:
        if subprocess.run(command, stdin=subprocess.DEVNULL, check=False).returncode == 0:
            sys.stdout.write("up\n")
            sys.stdout.flush()
            sys.stdin.read()
    finally:
        for process in [each for each in session(os.getpid()) if each != os.getpid()]:
            os.kill(process, signal.SIGKILL)


if __name__ == "__main__":
    main()
