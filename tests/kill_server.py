"""Run by test_kills.py: commands of sodp3d in forked children, each with a signal to itself at a chosen moment.

Reads lines of JSON {arguments, signal, at, name, log}: the signal comes before the child publishes its `at`-th file
(of those whose path holds `name`), by a rename, as everything here is published. Answers {status, published}. Importing
takes seconds, and is done once; only the children touch zarr, whose threads do not survive a fork. Workers live in the
child too: how their deaths are met is tested elsewhere.
"""

import json
import os
import sys
from collections.abc import Callable
from typing import Any

PUBLISHED = 0


def preload() -> None:
    """Import what commands import, from the package to its heaviest libraries."""
    import imageio.v3  # noqa: F401
    import imageio_ffmpeg  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import open3d  # noqa: F401
    import sodp3d_example  # noqa: F401
    import tensorboard.compat.proto.event_pb2
    import tensorboard.summary.writer.record_writer  # noqa: F401
    import torch
    import torch._dynamo

    import sodp3d.collection.collect
    import sodp3d.collection.convert
    import sodp3d.data.redraw
    import sodp3d.exchange.exporting
    import sodp3d.exchange.folder
    import sodp3d.exchange.importing
    import sodp3d.learning.stages
    import sodp3d.tools.card_figures
    import sodp3d.tools.export
    import sodp3d.tools.extract
    import sodp3d.tools.import_recording
    import sodp3d.tools.merge  # noqa: F401
    from sodp3d.core.cli import compose

    compose("train", ["plugins=[sodp3d_example]", "env=puck"])
    torch.set_num_threads(1)


def work_here() -> None:
    """Let workers live in this process."""
    from sodp3d.parallel import Answer, Holder, LocalWorker

    class Here:
        def __init__(self, factory: Callable[..., Any], values: tuple[Any, ...], threads: int) -> None:
            self.holder = Holder(factory, values)

        def start(self, method: str, arguments: tuple[Any, ...]) -> None:
            self.value = self.holder.call(method, arguments)

        def answer(self) -> Answer:
            return self.value

        def stop(self) -> None:
            pass

        def wait(self) -> None:
            pass

    for name in ("__init__", "start", "answer", "stop", "wait"):
        setattr(LocalWorker, name, getattr(Here, name))


def draw_little() -> None:
    """Let videos be small, and other pictures nothing: they take most of the time, and are tested elsewhere."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    from sodp3d.tools import video

    video.SIZE = 16
    FigureCanvasAgg.print_figure = lambda self, content, **_: content.write(b"Software\0sodp3d")
    Figure.tight_layout = lambda self: None


def watch(number: int, at: int, name: str) -> None:
    """Send this process the signal `number` before its `at`-th publication of such a name; 0: never."""
    for function in ("rename", "replace"):
        original = getattr(os, function)

        def publish(source: Any, target: Any, *more: Any, original: Any = original, **options: Any) -> None:
            global PUBLISHED
            if name in os.fspath(target):
                PUBLISHED += 1
                if at == PUBLISHED:
                    os.kill(os.getpid(), number)
            original(source, target, *more, **options)

        setattr(os, function, publish)


def child(order: dict[str, Any], told: int) -> None:
    """Run one command; what it says goes to the file `log`."""
    log = os.open(order["log"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1), os.dup2(log, 2)
    work_here()
    draw_little()
    watch(order["signal"], order["at"], order["name"])
    sys.argv = ["sodp3d", *order["arguments"]]
    from sodp3d.__main__ import main

    status = 0
    try:
        main()
    except SystemExit as ended:
        status = int(ended.code or 0)
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os.write(told, json.dumps({"status": status, "published": PUBLISHED}).encode())
    os._exit(0)


def serve() -> None:
    """Answer orders until the input ends."""
    preload()
    for line in sys.stdin:
        order = json.loads(line)
        read, write = os.pipe()
        process = os.fork()
        if process == 0:
            try:
                child(order, write)
            except BaseException as error:
                sys.stderr.write(f"Traceback: {error!r}\n")
                sys.stderr.flush()
            os._exit(1)
        os.close(write)
        _, status = os.waitpid(process, 0)
        answer = os.read(read, 1000)
        os.close(read)
        if os.WIFSIGNALED(status):
            answer = json.dumps({"status": -os.WTERMSIG(status), "published": -1}).encode()
        sys.stdout.write(answer.decode() + "\n")
        sys.stdout.flush()


if __name__ == "__main__":
    serve()
