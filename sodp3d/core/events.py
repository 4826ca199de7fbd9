"""TensorBoard's scalars, written at once: a full disk is told by the call that met it, a kill loses none."""

import io
import os
import socket
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sodp3d.core.trackers import Tracker


class TensorBoard(Tracker):
    """`tracker=tensorboard`: each process adds one file of events to the run's folder `tensorboard`."""

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        """Raises OSError where the disk refuses; so do the other methods."""
        from tensorboard.compat.proto.event_pb2 import Event

        folder = directory / "tensorboard"
        folder.mkdir(parents=True, exist_ok=True)
        before = len(list(folder.iterdir()))
        self.empty = before == 0
        name = f"events.out.tfevents.{int(time.time()):010d}.{socket.gethostname()}.{os.getpid()}.{before}"
        self._file = (folder / name).open("ab", buffering=0)
        self._write(Event(wall_time=time.time(), file_version="brain.Event:2"))

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Add each value under its name."""
        from tensorboard.compat.proto.event_pb2 import Event
        from tensorboard.compat.proto.summary_pb2 import Summary

        summary = Summary(value=[Summary.Value(tag=name, simple_value=float(value)) for name, value in values.items()])
        self._write(Event(wall_time=time.time(), step=step, summary=summary))

    def close(self) -> None:
        """No more is added."""
        self._file.close()

    def _write(self, event: Any) -> None:
        from tensorboard.summary.writer.record_writer import RecordWriter

        record = io.BytesIO()
        RecordWriter(record).write(event.SerializeToString())
        left = record.getvalue()
        while left:  # a disk takes what fits, and refuses the next write
            left = left[self._file.write(left) :]
