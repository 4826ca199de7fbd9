"""Shared by all tests: one thread each (they run side by side), no CUDA unless SODP3D_TEST_CUDA is set, no network."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before NumPy and PyTorch are imported
os.environ.setdefault("LP_NUM_THREADS", "1")  # llvmpipe, the software GL renderer
if "SODP3D_TEST_CUDA" not in os.environ:
    os.environ["CUDA_VISIBLE_DEVICES"] = ""

import socket
from collections.abc import Iterator
from typing import Any

import pytest

_connect = socket.socket.connect


@pytest.fixture(autouse=True)
def no_network(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Refuse connections that leave this machine."""

    def connect(self: socket.socket, address: Any) -> Any:
        if self.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            raise OSError(f"tests may not use the network: {address}")
        return _connect(self, address)

    monkeypatch.setattr(socket.socket, "connect", connect)
    yield
