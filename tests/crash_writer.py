"""Run by test_store_crash.py: starts writers that append without pause and kills each with SIGKILL.

Reads lines "store milliseconds" and answers each with "killed". Only the forked children touch zarr, whose threads do
not survive a fork.
"""

import os
import signal
import sys
import time
from pathlib import Path

from toy_store import ATTRIBUTES, SPECIFICATION, episode, metadata

from sodp3d.data.store import EpisodeStore


def write_until_killed(path: Path) -> None:
    """Create or continue the store: its next episode is always the one of its length."""
    if path.exists():
        store = EpisodeStore.open(path, "a", ATTRIBUTES, SPECIFICATION)
    else:
        store = EpisodeStore.create(path, ATTRIBUTES, SPECIFICATION)
    while True:
        number = len(store)
        store.append(episode(number), metadata(number))


def main() -> None:
    """Serve until the input ends."""
    for line in sys.stdin:
        path, milliseconds = line.split()
        child = os.fork()
        if child == 0:
            try:
                write_until_killed(Path(path))
            finally:
                os._exit(1)  # only reached when the writer fails by itself
        time.sleep(float(milliseconds) / 1000)
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        sys.stdout.write("killed\n" if os.WIFSIGNALED(status) else "failed\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
