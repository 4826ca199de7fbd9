"""VRL3 from images: encoder, shifts, replay of frames and gradients against plain re-statements; exact resumption."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch.nn import functional
from toy_collection import Point, demonstrations

from sodp3d.collection import agents
from sodp3d.collection.agents.frames import PixelReplay
from sodp3d.collection.agents.memory import Trajectory
from sodp3d.collection.agents.pixels import PixelEncoder, ResNet6, random_shift
from sodp3d.collection.agents.schedule import schedule
from sodp3d.collection.agents.vrl3 import VRL3
from sodp3d.collection.agents.vrl3_config import VRL3Config
from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError

torch.set_num_threads(1)
SIDE = 24  # the encoder takes any size
SMALL = VRL3Config(
    encoder="pixels", hidden=16, features=8, batch_size=8, conservative_actions=3, offline_updates=20,
    bc_weight_online=0.1, demo_fraction=0.25, replay_size=12,
)  # fmt: skip


def make_trajectory(steps: int, seed: int, terminated: bool = False) -> Trajectory:
    random = np.random.default_rng(seed)
    images = random.integers(0, 256, (steps + 1, 3, SIDE, SIDE), dtype=np.uint8)
    joints = random.normal(size=(steps + 1, 5)).astype(np.float32)
    return Trajectory(joints, random.uniform(-1, 1, (steps, 2)), random.normal(size=steps), terminated, images)


def make_agent(config: VRL3Config = SMALL, seed: int = 0) -> VRL3:
    agent = VRL3(config, 5, 2, seed)
    agent.demonstrate([make_trajectory(4, 100), make_trajectory(6, 101)])
    return agent


def observation(seed: int = 0) -> dict[str, np.ndarray]:
    seen = make_trajectory(2, seed)
    assert seen.images is not None
    return {"agent_pos": seen.states, "image": seen.images}


# ---- encoder ---------------------------------------------------------------------------------------------------------


def test_encoder_has_the_sizes_of_resnet6() -> None:
    network = ResNet6(torch.Generator().manual_seed(0))
    sizes: list[int] = []
    for convolution in network.convolutions:
        convolution.register_forward_hook(lambda module, inputs, output: sizes.append(output.shape[-1]))
    assert network(torch.zeros(2, 3, 84, 84, dtype=torch.uint8)).shape == (2, 256)
    assert sizes == [41, 41, 21, 11, 6]
    weights = 9 * (3 * 32 + 32 * 32 + 32 * 64 + 64 * 128 + 128 * 256)
    norms = 2 * (32 + 32 + 64 + 128 + 256)
    assert sum(parameter.numel() for parameter in network.parameters()) == weights + norms == 398_176


def test_encoder_normalizes_colours_as_imagenet() -> None:
    network = ResNet6(torch.Generator().manual_seed(0)).eval()
    seen: list[torch.Tensor] = []
    network.convolutions[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    colour = torch.tensor([10, 100, 250], dtype=torch.uint8)
    network(colour.view(1, 3, 1, 1).expand(1, 3, SIDE, SIDE))
    expected = (colour / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(seen[0][0, :, 7, 3], expected)


def test_acting_uses_running_statistics_and_learning_changes_them() -> None:
    agent = make_agent()
    both = observation()
    one = {key: values[:1] for key, values in both.items()}
    torch.testing.assert_close(
        agent.encoder.look(both, agent.device)[:1], agent.encoder.look(one, agent.device), rtol=1e-4, atol=1e-5
    )  # in training mode an image's features would depend on its neighbours

    def statistics() -> torch.Tensor:
        return agent.state()[0]["encoder.network.norms.0.running_mean"].clone()

    before = statistics()
    agent.act(both, explore=True)
    assert torch.equal(statistics(), before)
    agent.update(1)
    assert not torch.equal(statistics(), before)
    assert not any(module.training for module in agent.encoder.modules())


# ---- shifts ----------------------------------------------------------------------------------------------------------


@given(padding=st.integers(0, 5), seed=st.integers(0, 999))
@settings(max_examples=25, deadline=None)
def test_shifts_equal_padding_and_cropping_and_the_published_interpolation(padding: int, seed: int) -> None:
    images = torch.randint(256, (4, 3, 9, 9), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    shifted = random_shift(images, padding, torch.Generator().manual_seed(seed))
    down, right = torch.randint(-padding, padding + 1, (2, 4, 1), generator=torch.Generator().manual_seed(seed))
    padded = functional.pad(images.float(), [padding] * 4, mode="replicate")
    for index in range(4):
        top, left = padding + int(down[index]), padding + int(right[index])
        assert torch.equal(shifted[index].float(), padded[index, :, top : top + 9, left : left + 9])
    size = 9 + 2 * padding  # DrQ-v2: a grid over the padded image, moved by whole pixels, sampled bilinearly
    line = torch.linspace(-1 + 1 / size, 1 - 1 / size, size)[:9]
    grid = torch.stack(torch.meshgrid(line, line, indexing="xy"), dim=-1)
    offsets = torch.stack([right[:, 0], down[:, 0]], dim=-1) + padding
    sampled = functional.grid_sample(padded, grid + offsets[:, None, None] * 2 / size, align_corners=False)
    torch.testing.assert_close(shifted.float(), sampled, rtol=0, atol=0.01)
    assert padding > 0 or torch.equal(shifted, images)


def test_shifts_reach_both_bounds_and_differ_between_images() -> None:
    ramp = torch.arange(20, dtype=torch.uint8).expand(500, 1, 20, 20)
    middle = random_shift(ramp, 4, torch.Generator().manual_seed(0))[:, 0, 10, 10]
    assert sorted(set(middle.tolist())) == list(range(6, 15))


# ---- replay ----------------------------------------------------------------------------------------------------------


@given(
    lengths=st.lists(st.integers(1, 7), min_size=1, max_size=12), capacity=st.integers(1, 20), seed=st.integers(0, 9)
)
@settings(max_examples=50, deadline=None)
def test_rows_show_their_own_images_whatever_was_overwritten(lengths: list[int], capacity: int, seed: int) -> None:
    replay = PixelReplay(1, 1, 3, 0.9, capacity)
    number = 0

    def episode(steps: int) -> Trajectory:
        nonlocal number
        numbers = np.arange(number, number + steps + 1)
        number += steps + 1
        images = np.broadcast_to(numbers.astype(np.uint8)[:, None, None, None], (steps + 1, 3, 2, 2))
        return Trajectory(numbers[:, None].astype(np.float32), np.zeros((steps, 1)), np.ones(steps), False, images)

    replay.add(episode(3), demo=True)
    for steps in lengths:
        replay.add(episode(steps))
    batch = replay.sample(100, torch.Generator().manual_seed(seed))
    assert batch.images is not None and batch.next_images is not None
    assert torch.equal(batch.images[:, 0, 0, 0].float(), batch.states[:, 0])
    assert torch.equal(batch.next_images[:, 0, 0, 0].float(), batch.next_states[:, 0])
    held = sum(len(images) for images in replay.frames.tensors().values())
    assert held <= 4 + 2 * capacity + 2 * 8, "images that no row shows are let go of"


def test_each_image_is_held_once() -> None:
    agent = make_agent()
    tensors = agent.state()[0]
    images = [value for name, value in tensors.items() if name.startswith("replay.frames")]
    assert sum(len(value) for value in images) == 5 + 7 and all(value.dtype == torch.uint8 for value in images)


def test_episodes_without_images_or_with_others_are_refused() -> None:
    with pytest.raises(InputError, match="sees images was given an episode without any"):
        make_agent().observe(replace(make_trajectory(3, 0), images=None))
    with pytest.raises(InputError, match="3 uint8 images and 4 states do not fit"):
        replace(make_trajectory(3, 0), images=np.zeros((3, 3, 4, 4), np.uint8))


# ---- who learns from what --------------------------------------------------------------------------------------------


def weights(agent: VRL3) -> torch.Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in agent.encoder.parameters()])


@pytest.mark.parametrize("offline", [True, False])
def test_the_critics_loss_moves_the_encoder_and_the_actors_does_not(
    offline: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for silenced in ("_update_actor", "_update_critic"):
        agent = make_agent()
        before, actor = weights(agent), agent.actor.state_dict()
        actor = {name: value.clone() for name, value in actor.items()}
        monkeypatch.setattr(agent, silenced, lambda *_: {})
        agent.update(1, offline)
        moved = not torch.equal(weights(agent), before)
        acted = any(not torch.equal(value, actor[name]) for name, value in agent.actor.state_dict().items())
        assert (moved, acted) == ((True, False) if silenced == "_update_actor" else (False, True))


def test_the_actor_gets_features_without_a_graph_and_the_target_no_gradient(monkeypatch: pytest.MonkeyPatch) -> None:
    agent = make_agent()
    batch = agent.replay.sample(4, torch.Generator().manual_seed(0))
    states, next_states = agent.encoder.learn(batch, torch.Generator().manual_seed(0))
    assert states.requires_grad and not next_states.requires_grad and states.shape == (4, 256 + 5)
    torch.testing.assert_close(states[:, 256:], batch.states)  # joints as they are
    seen: list[torch.Tensor] = []
    monkeypatch.setattr(agent, "_update_actor", lambda batch, states, *_: seen.append(states) or {})
    agent.update(1)
    assert not seen[0].requires_grad


def test_each_weight_of_the_encoder_moves_against_its_own_gradient() -> None:
    """Channels-last images give gradients of another layout in memory, whose elements fused Adam would mix up."""
    agent = make_agent()
    before = [weight.detach().clone() for weight in agent._encoder_parameters]
    agent.update(1, offline=True)
    for weight, start in zip(agent._encoder_parameters, before, strict=True):
        gradient, moved = weight.grad, weight.detach() - start
        assert gradient is not None and weight.ndim in (1, 4)
        strong = gradient.abs() > 1e-6  # Adam's first step is as long for all of them
        assert strong.any() and torch.equal(moved[strong].sign(), -gradient[strong].sign())


def test_encoder_learns_at_its_own_rate() -> None:
    still = make_agent(replace(SMALL, encoder_lr_scale=0.0))
    before, critic = weights(still), still.critic.trunk.weight.detach().clone()
    still.update(2)
    assert torch.equal(weights(still), before) and not torch.equal(still.critic.trunk.weight, critic)


# ---- resumption, determinism -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("offline", [True, False])
def test_resuming_equals_never_having_stopped(tmp_path: Path, offline: bool) -> None:
    def play(agent: VRL3, seed: int) -> None:
        for index in range(3):  # past the end of the replay ring
            agent.observe(make_trajectory(5, seed + index))
        agent.update(2, offline)
        agent.act(observation(), explore=True)

    whole = make_agent()
    play(whole, 0)
    checkpoint.save(tmp_path, 1, *whole.state())
    play(whole, 10)
    _, tensors, state = checkpoint.load_latest(tmp_path) or pytest.fail("no checkpoint")
    resumed = VRL3(SMALL, 5, 2, seed=99)
    resumed.load_state(tensors, state)
    assert resumed.offline_left == SMALL.offline_updates - 2 * offline
    play(resumed, 10)
    one, other = whole.state(), resumed.state()
    assert one[1] == other[1] and one[0].keys() == other[0].keys()
    for name, value in one[0].items():
        assert torch.equal(value, other[0][name]), name


def test_same_seed_same_agent_another_seed_another() -> None:
    first, second, other = make_agent(), make_agent(), make_agent(seed=1)
    assert torch.equal(weights(first), weights(second)) and not torch.equal(weights(first), weights(other))
    assert first.update(2) == second.update(2)


# ---- stage 1 ---------------------------------------------------------------------------------------------------------


def build(**options: Any) -> VRL3:
    settings = {"name": "vrl3", "encoder": "pixels", "hidden": 16, "features": 8, **options}
    agent = agents.build(settings, agents.Surroundings(None, 39, 2, 5, 0))  # type: ignore[arg-type]
    assert isinstance(agent, VRL3)
    return agent


def test_stage_1_weights_are_loaded_without_the_classifier(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    trained = ResNet6(torch.Generator().manual_seed(7))
    with torch.no_grad():
        trained.norms[0].running_mean += 0.5
    file = tmp_path / "stage1.safetensors"
    save_file(trained.state_dict() | {"classifier.weight": torch.zeros(3, 256)}, file)
    with caplog.at_level("INFO"):
        agent = build(stage1=str(file))
    assert f"starts from {file}" in caplog.text
    images = torch.from_numpy(observation()["image"])
    features = agent.encoder.look(observation(), agent.device)[:, :256]
    torch.testing.assert_close(features, trained.eval()(images), rtol=0, atol=0)
    with caplog.at_level("INFO"):
        build()
    assert "from scratch" in caplog.text


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    good = ResNet6(torch.Generator()).state_dict()
    wrong = {**good, "convolutions.0.weight": torch.zeros(64, 3, 3, 3)}
    del wrong["norms.4.bias"]
    save_file({**wrong, "more": torch.zeros(1)}, file)
    message = r"norms\.4\.bias is missing; more is unknown; convolutions\.0\.weight is \(64, 3, 3, 3\), expected \(32,"
    with pytest.raises(InputError, match=message):
        build(stage1=str(file))
    file.write_bytes(b"PK\x03\x04 a pickle")
    with pytest.raises(InputError, match="not a safetensors file"):
        build(stage1=str(file))
    with pytest.raises(InputError, match=r"agent\.stage1: there is no file .*pretrain_encoder\.py"):
        build(stage1=str(tmp_path / "nothing.safetensors"))
    encoder = PixelEncoder(5, 4, 0)
    assert encoder.features == 261 and encoder.image_size == 84


# ---- scheduled noise -------------------------------------------------------------------------------------------------


def test_noise_follows_its_schedule() -> None:
    linear = schedule("linear(1.0, 0.1, 100)", "agent.online_std")
    assert [linear(step) for step in (0, 50, 100, 1000)] == pytest.approx([1.0, 0.55, 0.1, 0.1])
    assert schedule(0.2, "x")(7) == schedule("0.2", "x")(7) == 0.2
    agent = make_agent(replace(SMALL, online_std="linear(0.5,0.0,8)"))
    assert agent.online_std == 0.5
    agent.observe(make_trajectory(4, 0))
    assert agent.online_std == pytest.approx(0.25)
    for wrong in ("linear(1,2)", "cosine(1,2,3)", "-0.1", "linear(1,2,0)", "linear(1,-2,3)"):
        with pytest.raises(InputError, match=r"agent\.online_std: expected a number from 0 on"):
            schedule(wrong, "agent.online_std")


# ---- learning --------------------------------------------------------------------------------------------------------


def colours(states: np.ndarray) -> np.ndarray:
    """Images (T, 3, 16, 16) whose red and green say where the point is."""
    images = np.zeros((len(states), 3, 16, 16), np.uint8)
    images[:, :2] = np.clip(128 + 80 * states, 0, 255)[:, :, None, None]
    return images


@pytest.mark.slow
def test_stage_2_learns_the_way_home_from_images_alone() -> None:
    config = replace(SMALL, hidden=32, batch_size=32, learning_rate=1e-3, bc_weight_offline=0.5)
    agent = VRL3(config, 1, 2, seed=0)
    blind = [np.zeros((len(shown.states), 1), np.float32) for shown in demonstrations(6)]
    agent.demonstrate(
        [
            replace(shown, states=joints, images=colours(shown.states))
            for shown, joints in zip(demonstrations(6), blind, strict=True)
        ]
    )

    def mean_return() -> float:
        returns = []
        for seed in range(100, 110):
            point, finished = Point(seed), None
            while finished is None:
                seen = {"agent_pos": np.zeros((1, 1), np.float32), "image": colours(point.states[-1][None])}
                finished = point.step(agent.act(seen, explore=False)[0])
            returns.append(finished.episode_return)
        return float(np.mean(returns))

    untrained = mean_return()
    agent.update(150, offline=True)
    trained = mean_return()
    assert untrained < -8 and trained > -5, (untrained, trained)
