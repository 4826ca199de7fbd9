import json
import multiprocessing
import os
import pickle
import random
import resource
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch

from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError


def tensors(step: int) -> dict[str, torch.Tensor]:
    return {"weights": torch.full((200_000,), float(step)), "bias": torch.arange(3.0) + step}


def save_forever(directory: Path) -> None:
    step = checkpoint.steps(directory)[-1] if checkpoint.steps(directory) else 0
    while True:
        step += 1
        checkpoint.save(directory, step, tensors(step), {"value": step})


def test_round_trip_keeps_tensors_and_state(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 7, tensors(7), {"name": "a", "list": [1, 2]})
    step, loaded, state = checkpoint.load_latest(tmp_path)  # type: ignore[misc]
    assert step == 7 and state["list"] == [1, 2]
    assert all(torch.equal(loaded[name], value) for name, value in tensors(7).items())


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for step in range(5):
        checkpoint.save(tmp_path, step, tensors(step), {}, keep=2)
    assert checkpoint.steps(tmp_path) == [3, 4]


def test_later_ones_can_be_dropped(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        checkpoint.save(tmp_path, step, tensors(step), {}, keep=3)
    checkpoint.drop_after(tmp_path, 2)
    assert checkpoint.steps(tmp_path) == [1, 2]
    checkpoint.drop_after(tmp_path / "none", 2)


def test_sigkill_at_random_moments_never_leaves_a_broken_checkpoint(tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    draw = random.Random(0)
    newest = 0
    for _ in range(25):
        process = context.Process(target=save_forever, args=(tmp_path,))
        process.start()
        deadline = time.monotonic() + 60
        while (checkpoint.steps(tmp_path) or [0])[-1] <= newest + 1 and time.monotonic() < deadline:
            time.sleep(0.001)  # however busy the machine is, the writer is killed while it writes
        time.sleep(draw.random() * 0.08)
        os.kill(process.pid, signal.SIGKILL)  # type: ignore[arg-type]
        process.join()
        for step in checkpoint.steps(tmp_path):
            loaded, state = checkpoint.load(tmp_path / f"{step:08d}")
            assert state["value"] == step
            assert torch.equal(loaded["weights"], tensors(step)["weights"])
        found = checkpoint.steps(tmp_path)
        assert not found or found[-1] >= newest, "a complete checkpoint was lost"
        newest = found[-1] if found else newest
    assert newest > 25, "the writer hardly wrote: the test proved nothing"


def test_a_full_disk_is_told_and_leaves_the_previous_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    checkpoint.save(tmp_path, 1, tensors(1), {})
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(InputError, match="Free some space"):
        checkpoint.save(tmp_path, 2, tensors(2), {})
    assert checkpoint.steps(tmp_path) == [1]


def test_a_pickle_is_refused_and_its_code_does_not_run(tmp_path: Path) -> None:
    sentinel = tmp_path / "ran"

    class Bomb:
        def __reduce__(self):  # type: ignore[no-untyped-def]
            return (os.system, (f"touch {sentinel}",))

    checkpoint.save(tmp_path, 1, tensors(1), {})
    (tmp_path / "00000001" / checkpoint.TENSORS).write_bytes(pickle.dumps(Bomb()))
    (tmp_path / "00000001" / checkpoint.STATE).write_text("{}")  # of a release without digests
    with pytest.raises(InputError, match="pickled files are refused"):
        checkpoint.load(tmp_path / "00000001")
    assert not sentinel.exists()


@pytest.mark.parametrize(("name", "content"), [("state.json", "{"), ("tensors.safetensors", "")])
def test_a_broken_file_is_named(tmp_path: Path, name: str, content: str) -> None:
    checkpoint.save(tmp_path, 1, tensors(1), {})
    (tmp_path / "00000001" / name).write_text(content)
    with pytest.raises(InputError, match=name):
        checkpoint.load(tmp_path / "00000001")


def test_optimizer_round_trip_continues_bit_for_bit() -> None:
    def make() -> tuple[torch.nn.Linear, torch.optim.Adam]:
        torch.manual_seed(0)
        model = torch.nn.Linear(4, 3)
        return model, torch.optim.Adam(model.parameters(), lr=0.1, fused=True)

    def step(model: torch.nn.Linear, optimizer: torch.optim.Adam, seed: int) -> None:
        data = torch.randn(8, 4, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(data).square().mean().backward()
        optimizer.step()

    straight, optimizer = make()
    for seed in range(6):
        step(straight, optimizer, seed)
    first, optimizer = make()
    for seed in range(3):
        step(first, optimizer, seed)
    second, fresh = make()
    second.load_state_dict(first.state_dict())
    checkpoint.load_optimizer(fresh, checkpoint.optimizer_tensors(optimizer))
    for seed in range(3, 6):
        step(second, fresh, seed)
    assert torch.equal(straight.weight, second.weight)


def test_checkpoints_of_any_number_of_steps_are_found_in_their_order(tmp_path: Path) -> None:
    for step in (99_999_999, 10**8, 10**9 + 5):
        checkpoint.save(tmp_path, step, tensors(0), {}, keep=3)
    (tmp_path / "000000001").mkdir()  # no name of ours
    assert checkpoint.steps(tmp_path) == [99_999_999, 10**8, 10**9 + 5]
    step, _, state = checkpoint.load_latest(tmp_path) or pytest.fail("no checkpoint")
    assert step == state["step"] == 10**9 + 5
    checkpoint.drop_after(tmp_path, 10**8)
    assert checkpoint.steps(tmp_path) == [99_999_999, 10**8]


def test_a_flipped_bit_is_told_and_a_checkpoint_without_a_digest_loads(tmp_path: Path) -> None:
    path = checkpoint.save(tmp_path, 1, tensors(1), {})
    content = bytearray((path / checkpoint.TENSORS).read_bytes())
    content[-1] ^= 1
    (path / checkpoint.TENSORS).write_bytes(content)
    with pytest.raises(InputError, match="damaged, its sha256 is not the one in"):
        checkpoint.load(path)
    state = checkpoint.read_state(path)
    assert checkpoint.digest_of(path) == state.pop(checkpoint.DIGEST)
    (path / checkpoint.STATE).write_text(json.dumps(state))
    assert checkpoint.load(path)[1] == {"step": 1}
    assert checkpoint.digest_of(path) == checkpoint.digest(path / checkpoint.TENSORS)


@pytest.mark.parametrize("text", ["null", "[]", "3", '"step"'])
def test_a_state_that_is_no_object_is_told(tmp_path: Path, text: str) -> None:
    path = checkpoint.save(tmp_path, 1, tensors(1), {})
    (path / checkpoint.STATE).write_text(text)
    with pytest.raises(InputError, match=r"state\.json: expected a JSON object.*remove 00000001"):
        checkpoint.load_latest(tmp_path)


def test_a_disk_that_fills_while_saving_leaves_no_litter(tmp_path: Path) -> None:
    checkpoint.save(tmp_path, 1, tensors(1), {})
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, before[1]))
    try:
        with pytest.raises(InputError, match=r"cannot write .*earlier checkpoints stay"):
            checkpoint.save(tmp_path, 2, tensors(2), {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert [path.name for path in tmp_path.iterdir()] == ["00000001"]


def test_a_random_stream_goes_on_exactly_and_on_another_kind_of_device_anew(caplog: pytest.LogCaptureFixture) -> None:
    before, after = torch.Generator().manual_seed(3), torch.Generator()
    checkpoint.restore_generator(after, before.get_state())
    assert torch.equal(torch.randn(4, generator=before), torch.randn(4, generator=after))
    assert not caplog.records
    of_cuda = torch.arange(checkpoint.CUDA_STATE, dtype=torch.uint8)  # as a CUDA generator tells its state
    drawn = []
    for state in (of_cuda, of_cuda, of_cuda + 1):
        checkpoint.restore_generator(after, state)
        drawn.append(torch.randn(4, generator=after))
    assert torch.equal(drawn[0], drawn[1]) and not torch.equal(drawn[0], drawn[2])
    assert "begun on another kind of device" in caplog.text
    with pytest.raises((RuntimeError, TypeError)):
        checkpoint.restore_generator(after, of_cuda[:5])
