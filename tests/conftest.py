"""Shared by all tests: one thread each (they run side by side), no CUDA unless SODP3D_TEST_CUDA is set, no network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and PyTorch are imported
os.environ.setdefault("LP_NUM_THREADS", "1")  # llvmpipe, the software GL renderer
if "SODP3D_TEST_CUDA" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import signal
import socket
from collections.abc import Iterator
from typing import Any

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

# Files whose module fixtures take seconds: one worker runs all of such a file, so that they are made once. (xdist's own
# mark for this, xdist_group, has no effect with pytest 9: it writes into node ids, which are computed now.)
_COSTLY = (
    "all_tasks cameras examples image kills methods_pipeline pipeline pixel_collection pretrain_encoder processes "
    "sets_pipeline view wheel"
)
TOGETHER = tuple(f"test_{name}.py" for name in _COSTLY.split())
# Of `make whole-test`: whole commands and collections, installations, renderers, pictures, kills.
WHOLE = (*TOGETHER, *(f"test_{name}.py" for name in ("card", "collection", "mapped", "store_crash")))

_connect = socket.socket.connect

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # so do a shell's background jobs begin, and all that they start
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse connections that leave this machine."""

    def connect(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests may not use the network: {address}")
        return _connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    yield


class SomeFilesTogether(LoadScopeScheduling):
    """Each test goes to the next free worker, but those of a file in TOGETHER to the same one."""

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        return file if file.endswith(TOGETHER) else nodeid


@pytest.hookimpl(tryfirst=True)  # before -m chooses
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests of `make whole-test`."""
    for item in items:
        if item.path.name in WHOLE:
            item.add_marker("whole")


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SomeFilesTogether:
    return SomeFilesTogether(config, log)
