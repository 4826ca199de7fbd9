"""The wire format: what comes back, what openpi-client makes of it, and what is refused without being built."""

import math
import pickle
import tracemalloc
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

msgpack = pytest.importorskip("msgpack")

from sodp3d.core.errors import InputError  # noqa: E402
from sodp3d.serving.wire import MOST_IN_LIST, pack, unpack  # noqa: E402

DTYPES = ["<f4", ">f8", "<f2", "|u1", "<u2", ">i4", "<i8", "|b1"]


def array(dtype: str, shape: list[int], seed: int) -> np.ndarray:
    """Any bits, so not a number too; but a boolean is 0 or 1."""
    made = np.frombuffer(np.random.default_rng(seed).bytes(8 * math.prod(shape)), np.uint8)
    if dtype == "|b1":
        return (made[: math.prod(shape)] % 2).astype(bool).reshape(shape)
    return made[: np.dtype(dtype).itemsize * math.prod(shape)].view(dtype).reshape(shape)


ARRAYS = st.builds(array, st.sampled_from(DTYPES), st.lists(st.integers(0, 3), max_size=3), st.integers(0, 99))
LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**63), 2**64 - 1), st.floats(allow_nan=False), st.text(max_size=9),
    ARRAYS,
)  # fmt: skip
TREES = st.recursive(
    LEAVES, lambda inside: st.lists(inside, max_size=4) | st.dictionaries(st.text(max_size=5), inside, max_size=4)
)


def assert_equal(one: Any, other: Any) -> None:
    if isinstance(one, np.ndarray):
        assert isinstance(other, np.ndarray) and one.dtype == other.dtype and one.shape == other.shape
        assert one.tobytes() == other.tobytes()  # not a number among them too
    elif isinstance(one, dict):
        assert one.keys() == other.keys()
        for key in one:
            assert_equal(one[key], other[key])
    elif isinstance(one, list):
        assert len(one) == len(other)
        for mine, theirs in zip(one, other, strict=True):
            assert_equal(mine, theirs)
    else:
        assert one == other and type(one) is type(other)


@settings(max_examples=50, deadline=None, database=None, derandomize=True)
@given(TREES)
def test_what_is_packed_comes_back(value: Any) -> None:
    assert_equal(value, unpack(pack(value)))


def test_an_array_is_written_as_openpi_writes_it() -> None:
    """Byte for byte, from the format's description: a map with keys of bytes."""
    array = np.array([[1, 2, 3]], "<u2")
    expected = {b"__ndarray__": True, b"data": b"\1\0\2\0\3\0", b"dtype": "<u2", b"shape": (1, 3)}
    assert pack({"depth": array}) == msgpack.packb({"depth": expected})
    number = {b"__npgeneric__": True, b"data": 0.5, b"dtype": "<f4"}
    assert pack(np.float32(0.5)) == msgpack.packb(number) and unpack(msgpack.packb(number)) == 0.5


def test_the_clients_of_openpi_read_and_write_the_same() -> None:
    theirs = pytest.importorskip("openpi_client.msgpack_numpy")
    value = {"actions": np.random.default_rng(0).normal(size=(3, 2)), "reset": True, "offset": np.int64(3)}
    assert pack(value) == theirs.packb(value)
    assert_equal({**value, "offset": 3}, unpack(theirs.packb(value)))
    np.testing.assert_array_equal(theirs.unpackb(pack(value))["actions"], value["actions"])


def test_other_languages_may_write_texts_as_keys() -> None:
    text = {"__ndarray__": True, "data": b"\1\2", "dtype": "|u1", "shape": [2]}
    assert unpack(msgpack.packb({"image": text}))["image"].tolist() == [1, 2]


def described(**changes: Any) -> bytes:
    whole = {b"__ndarray__": True, b"data": bytes(8), b"dtype": "<f4", b"shape": [2]}
    return msgpack.packb({**whole, **{key.encode(): value for key, value in changes.items()}})


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"", "not msgpack"),
        (b"\xc1", "not msgpack"),
        (b"\x92\x01", "not msgpack"),
        (b"\x01\x02", "not msgpack"),  # something after the end
        (b"\xa2\xff\xff", "not msgpack"),  # no text
        (msgpack.packb({1: 2}), "not msgpack"),
        (msgpack.packb(msgpack.ExtType(4, b"x")), "not msgpack"),
        (msgpack.packb(msgpack.Timestamp(1)), "not msgpack"),
        (msgpack.packb([0] * (MOST_IN_LIST + 1)), "not msgpack"),
        (msgpack.packb([[0] * MOST_IN_LIST] * 65), "more than 65536 values"),
        (pickle.dumps({"a": 1}), "not msgpack"),
        (described(dtype="|O"), "array of numbers, got one of dtype '|O'"),
        (described(dtype="V8"), "got one of dtype 'V8'"),
        (described(dtype="<c8"), "got one of dtype"),
        (described(dtype="<M8"), "got one of dtype"),
        (described(dtype="<f16"), "got one of dtype"),
        (described(dtype="f4,f4"), "got one of dtype"),
        (described(dtype=[("a", "<f4")]), "got one of dtype"),
        (described(dtype=7), "got one of dtype"),
        (described(data=bytes(7)), "has other data"),
        (described(data="text"), "has other data"),
        (described(data=None), "has other data"),
        (described(shape=[-2]), "shape as a list of whole numbers"),
        (described(shape=[2.0]), "shape as a list of whole numbers"),
        (described(shape=[True, 2]), "shape as a list of whole numbers"),
        (described(shape=2), "shape as a list of whole numbers"),
        (described(shape=[1] * 9), "shape as a list of whole numbers"),
        (described(shape=[2**62, 2**62]), "has other data"),
        (msgpack.packb({b"__ndarray__": True}), "got one of dtype 'None'"),
        (msgpack.packb({b"__npgeneric__": True, b"data": [1], b"dtype": "<f4"}), "expected a number"),
    ],
)
def test_what_is_no_message_is_refused(data: bytes, told: str) -> None:
    with pytest.raises(InputError, match=r"^message: ") as error:
        unpack(data)
    assert told in str(error.value) and len(str(error.value)) < 400


@pytest.mark.parametrize("value", [np.array([{}]), np.array(["a"]), np.zeros(2, complex), {1, 2}, object(), 2**64])
def test_what_cannot_be_sent_is_said(value: Any) -> None:
    with pytest.raises(InputError, match=r"^message: "):
        pack({"key": value})


def test_few_bytes_do_not_fill_the_memory() -> None:
    """Headers of lists inside lists, each promising more than the message holds."""
    promises = [b"\xdd\xff\xff\xff\xff" * 1000, b"\xdc\x04\x00" * 1000, b"\xdf\xff\xff\xff\xff" * 1000, b"\x91" * 10**6]
    tracemalloc.start()
    try:
        for data in promises:
            with pytest.raises(InputError):
                unpack(data)
        assert tracemalloc.get_traced_memory()[1] < 2**25
    finally:
        tracemalloc.stop()
