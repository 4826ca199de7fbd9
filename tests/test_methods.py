"""Other methods than planners: each learns, comes back from its checkpoint, resumes, acts, and says what it cannot."""

import importlib
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from toy_methods import METHODS, SMALL, TASKS, configuration, fresh, options, write_stores
from toy_planner import STATE, make_observation, make_planner
from toy_slider import SliderChunks, make_slider

from sodp3d import load_planner, load_policy
from sodp3d.core import checkpoint, registry
from sodp3d.core.cli import compose
from sodp3d.core.errors import InputError
from sodp3d.core.run import Run
from sodp3d.envs.config import EnvConfig
from sodp3d.learning.lookup import as_planner_was_trained, with_sampler
from sodp3d.learning.pretrain import Pretraining
from sodp3d.learning.stages import STAGES
from sodp3d.learning.windows import load_data, to_device
from sodp3d.models.loading import make_policy, planner_state, policy_config, require_fitting
from sodp3d.models.policy import method_class
from sodp3d.models.policy_config import MethodConfig
from sodp3d.rollouts import rollout
from sodp3d.settings import TrainSettings

DRAWS = 9  # of each action
LEARNING = {  # gradient steps, learning rate, largest error of any normalized action
    "bcrnn": (800, 3e-3, 0.25),
    "mtbc": (400, 3e-3, 0.1),
    "ibc": (600, 1e-3, 0.35),
    "mtdiff": (1500, 4e-3, 0.35),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stores of two tasks."""
    folder = tmp_path_factory.mktemp("stores")
    write_stores(folder)
    return folder


@pytest.fixture(scope="module")
def single(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of one task, for methods that do not tell tasks apart."""
    folder = tmp_path_factory.mktemp("store")
    write_stores(folder, TASKS[:1])
    return folder


def trained(
    folder: Path, method: str, steps: int, rate: float, *more: str
) -> tuple[Pretraining, list[float], Any, Any]:
    """A policy after so many steps, the losses on the way, its windows and its tasks."""
    rated = f"pretrain.learning_rate={rate}", "pretrain.schedule=cosine", f"pretrain.steps={steps}"
    policy, dataset, config, tasks = fresh(folder, method, *rated, *more)
    training = Pretraining(policy, TrainSettings.from_config(config).pretrain, 0)
    losses = [
        float(training.update(to_device(dataset.sample(16, training.batches), torch.device("cpu"))))
        for _ in range(steps)
    ]
    return training, losses, dataset, tasks


# ---- learning ----------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("method", "more"),
    [(method, ()) for method in METHODS] + [("mtdiff", ("model.prompt=onehot",))],
)
def test_a_tiny_set_is_learned_by_heart_and_acted_out(folder: Path, single: Path, method: str, more: Any) -> None:
    several = "task" in method_class(method).labels
    steps, rate, tolerance = LEARNING[method]
    training, losses, dataset, tasks = trained(folder if several else single, method, steps, rate, *more)
    assert np.mean(losses[-30:]) < np.mean(losses[:30]) - 0.1 * abs(np.mean(losses[:30]))
    policy = training.planner.eval()
    first = 0
    for index, end in enumerate(dataset.episode_ends):
        if dataset.labels.get("return", np.ones(end))[first] == 1:  # an episode of less return is not asked for
            task = tasks[int(dataset.labels["task"][first])] if several else tasks[0]
            memories, shown = [policy.begin(task, seed) for seed in range(DRAWS)], []
            for row in range(first, end):
                rows = np.clip(np.arange(row - policy.config.n_obs_steps + 1, row + 1), first, None)
                observation = {key: np.stack(DRAWS * [dataset.arrays[key][rows]]) for key in ("agent_pos", "state")}
                shown.append(policy.act(observation, memories)[:, 0])
            # Most draws: a mixture keeps members of little weight, and a search may end elsewhere.
            error = np.abs(np.median(shown, axis=1) - dataset.arrays["action"][first:end])
            assert error.max() < tolerance, f"episode {index}: {error.round(2).tolist()}"
        first = end


def test_the_loss_of_every_method_reaches_every_parameter(folder: Path) -> None:
    for method in METHODS:
        for more in [(), ("model.prompt=onehot",)] if method == "mtdiff" else [()]:
            policy, dataset, _, _ = fresh(folder, method, *more)
            batch = to_device(dataset.sample(16, np.random.default_rng(0)), torch.device("cpu"))
            policy.loss(batch, torch.Generator().manual_seed(0)).backward()
            without = {name for name, value in policy.named_parameters() if value.grad is None or not value.grad.any()}
            assert not without, (method, without)


# ---- checkpoints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_resumed_training_is_as_if_it_had_never_stopped(folder: Path, tmp_path: Path, method: str) -> None:
    dropping = ("model.dropout=0.3",) if method in ("ibc", "mtdiff") else ()
    policy, dataset, config, tasks = fresh(folder, method, *dropping)
    _, data = load_data(config, tasks)
    settings, described = TrainSettings.from_config(config).pretrain, planner_state(policy, tasks, data.current)

    def learn(training: Pretraining, steps: int) -> None:
        for _ in range(steps):
            training.update(to_device(dataset.sample(8, training.batches), torch.device("cpu")))

    whole = Pretraining(fresh(folder, method, *dropping)[0], settings, 0)
    learn(whole, 4)
    with Run(tmp_path / "run", {}) as run:
        first = Pretraining(fresh(folder, method, *dropping)[0], settings, 0)
        learn(first, 2)
        first.save(run, described)
        torch.manual_seed(77)
        second = Pretraining(fresh(folder, method, *dropping)[0], settings, 5)
        torch.rand(3)
        second.load(run, data)
        learn(second, 2)
    for name, value in whole.planner.state_dict().items():
        assert torch.equal(value, second.planner.state_dict()[name]), name
    for name, value in whole.ema.planner.state_dict().items():
        assert torch.equal(value, second.ema.planner.state_dict()[name]), name


@pytest.mark.parametrize("method", METHODS)
def test_a_policy_comes_back_from_its_checkpoint(folder: Path, tmp_path: Path, method: str) -> None:
    training, _, dataset, tasks = trained(folder, method, 3, 1e-3)
    with Run(tmp_path / "run", {"method": method}) as run:
        training.save(run, planner_state(training.planner, tasks, "v2-0"))
    loaded, own = load_policy(tmp_path / "run"), training.ema.planner.eval()
    assert loaded.config == own.config and not loaded.training
    shown = dataset.windows(np.arange(3))
    steps = loaded.config.n_obs_steps
    observation = {key: shown[key][:, :steps] for key in ("agent_pos", "state")}
    acted = [one.act(observation, [one.begin(tasks[1], seed) for seed in range(3)]) for one in (loaded, own)]
    assert acted[0].shape == (3, loaded.config.n_action_steps, 3) and acted[0].dtype == np.float32
    np.testing.assert_array_equal(acted[0], acted[1])
    with pytest.raises(InputError, match=f"is of method={method}, which makes no plans"):
        load_planner(tmp_path / "run")
    state = json.loads(next((tmp_path / "run/checkpoints").glob("*/state.json")).read_text())
    assert policy_config(state, tmp_path) == own.config
    state["planner"]["model"]["width"] = 0
    with pytest.raises(InputError, match=r"model\.width: expected a whole number of at least 1"):
        policy_config(state, tmp_path)
    state["planner"]["model"]["depth"] = 3
    with pytest.raises(InputError, match="model: unknown key 'depth'"):
        policy_config(state, tmp_path)


# ---- acting ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["sodp", *METHODS])
def test_an_episode_is_acted_alike_whoever_is_beside_it(folder: Path, method: str) -> None:
    policy = make_planner(STATE) if method == "sodp" else fresh(folder, method)[0].eval()
    task = replace(configuration(folder, METHODS[0])[1][0])
    seen = [make_observation(policy.config, 3, seed=step) for step in range(6)]

    def acted(rows: list[int]) -> np.ndarray:
        memories = [policy.begin(task, seed=row) for row in rows]
        return np.stack([policy.act({k: v[rows].numpy() for k, v in step.items()}, memories) for step in seen], axis=1)

    together, alone = acted([0, 1, 2]), np.concatenate([acted([row]) for row in range(3)])
    np.testing.assert_allclose(together, alone, atol=1e-4)
    assert together.shape == (3, 6, policy.config.n_action_steps, policy.config.action_size)


def test_bcrnn_remembers_within_a_sequence_and_no_longer(folder: Path) -> None:
    policy, _, _, tasks = fresh(folder, "bcrnn")
    seen = {key: value.numpy() for key, value in make_observation(policy.config, 1).items()}
    other = {key: value + 1 for key, value in seen.items()}

    def acted(first: dict[str, np.ndarray], steps: int) -> np.ndarray:
        memory = policy.begin(tasks[0], seed=0)
        policy.act(first, [memory])
        for _ in range(steps - 2):
            policy.act(seen, [memory])
        memory.generator.manual_seed(1)
        return policy.act(seen, [memory])

    assert not np.array_equal(acted(seen, 3), acted(other, 3))
    np.testing.assert_array_equal(acted(seen, 5), acted(other, 5))  # of sequences of 4


@pytest.mark.parametrize("method", ["mtbc", "mtdiff"])
def test_the_task_decides_what_is_done_and_an_unknown_one_is_refused(folder: Path, method: str) -> None:
    policy, _, _, tasks = fresh(folder, method)
    seen = {key: value.numpy() for key, value in make_observation(policy.config, 1).items()}
    first, second = (policy.eval().act(seen, [policy.begin(task, seed=0)]) for task in tasks)
    assert not np.allclose(first, second)
    with pytest.raises(InputError, match="toy_third is none of them: toy_first, toy_second"):
        policy.begin(replace(tasks[0], name="toy_third"), seed=0)


def test_mtdiff_s_prompts_are_the_best_episodes_of_each_task(folder: Path) -> None:
    policy, dataset, _, _ = fresh(folder, "mtdiff")
    assert dataset.labels["return"].tolist() == 2 * (5 * [0.0] + 5 * [1.0])
    for task, start in enumerate((5, 15)):  # the second episode of each has the higher return
        expected = dataset.arrays["action"][[start, start + 2, start + 4]]
        np.testing.assert_array_equal(policy.get_buffer("prompt_action")[task, 0], expected)
    assert set(policy.prompt_keys) == {"action", "agent_pos", "state"}


def test_ibc_s_search_stays_in_the_data_s_range(folder: Path) -> None:
    policy, dataset, _, tasks = fresh(folder, "ibc")
    for values in dataset.ranges["action"]:
        values[1] = 0.25  # an action that never changes
    policy.prepare(dataset)
    seen = {key: value.numpy() for key, value in make_observation(policy.config, 5).items()}
    actions = policy.act(seen, [policy.begin(tasks[0], seed) for seed in range(5)])[:, 0]
    np.testing.assert_allclose(actions[:, 1], 0.25, atol=1e-5)
    low, high = (float(values[0]) for values in dataset.ranges["action"])
    assert (actions[:, 0] >= low - 1e-5).all() and (actions[:, 0] <= high + 1e-5).all() and np.ptp(actions[:, 0]) > 0


@pytest.mark.parametrize(("observation", "shape"), [("pointcloud", (24, 3)), ("image", (3, 16, 16))])
@pytest.mark.parametrize("method", METHODS)
def test_clouds_and_images_are_seen_too(folder: Path, method: str, observation: str, shape: Any) -> None:
    base: MethodConfig = fresh(folder, method)[0].config
    config = replace(
        base, observation=observation, sensor_shape=shape, renderer="egl" if observation == "image" else None
    )
    policy, tasks = make_policy(config), configuration(folder, method)[1]
    window = policy.window(tasks[0], config.model)
    seen = replace(base, observation=observation, sensor_shape=shape, n_obs_steps=window.observed, horizon=99)
    batch = {"action": torch.rand(4, window.horizon, 3), **make_observation(seen, 4)}
    batch |= {"task": torch.tensor([0, 1, 0, 1]), "return": torch.rand(4)}
    policy.loss(batch, torch.Generator().manual_seed(0)).backward()
    assert all(value.grad is not None for name, value in policy.encoder.named_parameters())
    shown = {key: value[:, : config.n_obs_steps].numpy() for key, value in make_observation(seen, 4).items()}
    acted = policy.eval().act(shown, [policy.begin(tasks[0], seed) for seed in range(4)])
    assert acted.shape == (4, config.n_action_steps, 3) and np.isfinite(acted).all()
    assert MethodConfig.from_dict(json.loads(json.dumps(config.to_dict()))) == config


class Still:
    """A policy that nobody learned."""

    def begin(self, task: EnvConfig, seed: int) -> str:
        return f"{task.name} {seed}"

    def act(self, observation: Any, memories: Any) -> np.ndarray:
        assert memories == ["slider 7"] and observation["state"].shape == (1, 1, 1)
        return np.zeros((1, 1, 1), np.float32)


def test_a_policy_with_a_memory_is_rolled_out_and_a_dead_worker_costs_nothing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from test_workers import kill_one_worker

    monkeypatch.setattr(rollout, "EnvironmentGroup", SliderChunks)
    config = replace(fresh(folder, "bcrnn")[0].config, sensor_shape=(1,), proprioception_size=1, action_size=1)
    policy = make_policy(config).eval()
    act, calls = policy.act, []

    def killing(observation: Any, memories: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            kill_one_worker()
        return act(observation, memories)

    task = replace(make_slider().config, n_obs_steps=1, n_action_steps=1)
    with rollout.Rollouts(task, "state", "raycast", "torch", 2, 3) as rollouts:
        expected = rollouts.run(policy, [7, 8, 9])
        monkeypatch.setattr(policy, "act", killing)
        found = rollouts.run(policy, [7, 8, 9])
        (scripted,) = rollouts.run(Still(), [7])
    assert len(np.concatenate(scripted.actions)) == task.episode_steps and not np.any(scripted.actions)
    assert len(calls) > expected[0].length
    for one, other in zip(expected, found, strict=True):
        assert one.length == other.length and one.success == other.success
        np.testing.assert_allclose(np.concatenate(one.actions), np.concatenate(other.actions), atol=1e-5)


# ---- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("mode", "method", "more", "told"),
    [
        ("finetune", "bcrnn", (), "method: fine-tuning tunes the denoising steps of a planner, and method=bcrnn"),
        ("finetune", "mtdiff", (), "method: fine-tuning tunes the denoising steps of a planner, and method=mtdiff"),
        ("pretrain", "bcrnn", ("env.n_action_steps=3",), "env.n_action_steps: method=bcrnn acts at every step;"),
        ("pretrain", "ibc", ("env.n_obs_steps=1",), "env.n_obs_steps: method=ibc acts at every step; expected 2"),
        ("pretrain", "bcrnn", ("evaluation.eta=0.5",), "evaluation.eta: method=bcrnn does not denoise, but 0.5 came"),
        ("pretrain", "bcrnn", ("model.sequence=0",), "model.sequence: expected a whole number of at least 1, got 0."),
        ("pretrain", "bcrnn", ("+model.depth=2",), "model: unknown key 'depth'; valid keys are prediction"),
        ("pretrain", "mtdiff", ("model.prompt=words",), "model.prompt: expected trajectory or onehot, got 'words'."),
        ("pretrain", "mtdiff", ("model.heads=5",), "model.width: expected a multiple of twice model.heads=5, got 32."),
        ("pretrain", "mtdiff", ("model.sampling_steps=7",), "model.sampling_steps: expected a divisor of model.d"),
        ("eval", "bcrnn", (), "planner: no finished finetune or pretrain run of adroit_door-state-bcrnn under"),
    ],
)  # fmt: skip
def test_what_a_method_cannot_do_is_told_before_anything_begins(
    tmp_path: Path, mode: str, method: str, more: tuple[str, ...], told: str
) -> None:
    config = compose("train", options(method, f"mode={mode}", f"root={tmp_path}", *more))
    with pytest.raises(InputError) as caught:
        STAGES[mode](config)
    assert str(caught.value).startswith(told) and "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("preset", ["quick", "cpu", "paper"])
def test_every_method_goes_with_every_preset(preset: str) -> None:
    for method in registry.METHODS:
        config = compose("train", [f"method={method}", f"preset={preset}"])
        TrainSettings.from_config(with_sampler(config))


def test_stores_without_rewards_are_refused_for_what_needs_returns(tmp_path: Path) -> None:
    write_stores(tmp_path, without=["reward"])
    with pytest.raises(InputError, match="has no rewards, and this method is conditioned on returns"):
        load_data(*configuration(tmp_path, "mtdiff"))
    assert set(load_data(*configuration(tmp_path, "mtbc"))[0].labels) == {"task"}


def test_a_policy_is_evaluated_as_its_method(folder: Path, tmp_path: Path) -> None:
    training, _, _, tasks = trained(folder, "bcrnn", 1, 1e-3)
    with Run(tmp_path / "run", {}) as run:
        state = planner_state(training.planner, tasks, "v2-0")
        training.save(run, state)
    with pytest.raises(InputError, match=r"is of method=bcrnn, but method=sodp came; give method=bcrnn\."):
        as_planner_was_trained(compose("train", ["obs=state"]), tmp_path / "run")
    config = compose("train", ["obs=state", "method=bcrnn"])
    made = {**training.planner.config.network, "sampling_steps": None}
    assert made["width"] != config["model"]["width"], "this one is smaller than usual"
    assert as_planner_was_trained(config, tmp_path / "run") == {**config, "model": made}
    told = f"^model.width: planner .* was trained with {made['width']}, but 77 came; leave it out"
    with pytest.raises(InputError, match=told):
        as_planner_was_trained(compose("train", ["obs=state", "method=bcrnn", "model.width=77"]), tmp_path / "run")
    require_fitting(state, training.planner, config, tasks[0])
    telling, _, _, _ = trained(folder, "mtbc", 1, 1e-3)
    with pytest.raises(InputError, match="tells its tasks apart, and toy_third is none of them: toy_first, toy_second"):
        require_fitting(state, telling.planner, config, replace(tasks[0], name="toy_third"))
    with pytest.raises(InputError, match="sees obs=state, but obs=pointcloud was asked for"):
        require_fitting(state, training.planner, compose("train"), tasks[0])


def test_planners_of_different_methods_are_told_apart(tmp_path: Path) -> None:
    task = EnvConfig.from_config(compose("train")["env"])
    planner = make_planner(replace(STATE, method="dp3", prediction="sample"))
    with Run(tmp_path / "run", {}) as run:
        checkpoint.save(run.checkpoints, 1, {}, planner_state(planner, [task], "v2-0"))
    told = r"is of method=dp3, but method=simple_dp3 came; give method=dp3\."
    with pytest.raises(InputError, match=told):
        as_planner_was_trained(compose("train", ["obs=state", "method=simple_dp3"]), tmp_path / "run")


# ---- one of one's own --------------------------------------------------------------------------------------------

PLUG_IN = """
from typing import Any
import torch
from sodp3d.core import registry
from sodp3d.core.sections import Count, section
from sodp3d.models.policy import LearnedPolicy
from sodp3d.settings import ModelSettings

registry.METHODS["linear"] = "my_method:Linear"

@section("model")
class LinearSettings(ModelSettings):
    hidden: Count = 8

class Linear(LearnedPolicy):
    settings = LinearSettings

    def __init__(self, config: Any) -> None:
        super().__init__(config)
        self.layer = torch.nn.Linear(config.feature_size, config.n_action_steps * config.action_size)

    def forward(self, observation: Any) -> Any:
        return self.layer(self.encode(observation)).unflatten(1, (-1, self.config.action_size))

    def losses(self, batch: Any, generator: Any = None) -> Any:
        start = self.config.n_obs_steps - 1
        wanted = self.normalizer.normalize("action", batch["action"])[:, start : start + self.config.n_action_steps]
        return (self(batch) - wanted).square().mean((1, 2))

    @torch.no_grad()
    def act(self, observation: Any, memories: Any) -> Any:
        return self.actions(self(self.on_device(observation))).cpu().numpy()
"""


def test_a_method_of_one_s_own_is_a_class_and_a_yaml(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    package = tmp_path / "my_method"
    (package / "configs/method").mkdir(parents=True)
    (package / "__init__.py").write_text(PLUG_IN)
    written = "# @package _global_\nmethod: linear\nmodel: {hidden: 16}\n"
    (package / "configs/method/linear.yaml").write_text(written)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv(registry.VARIABLE, "my_method")
    monkeypatch.setattr(registry, "METHODS", dict(registry.METHODS))
    importlib.invalidate_caches()
    monkeypatch.setitem(SMALL, "linear", [])
    training, losses, _, tasks = trained(folder, "linear", 100, 1e-2)
    assert losses[-1] < losses[0] and training.planner.config.model.hidden == 16
    with Run(tmp_path / "run", {}) as run:
        training.save(run, planner_state(training.planner, tasks, "v2-0"))
    loaded = load_policy(tmp_path / "run")
    seen = {key: value.numpy() for key, value in make_observation(loaded.config, 2).items()}
    acted = loaded.act(seen, [loaded.begin(tasks[0], seed) for seed in range(2)])
    assert acted.shape == (2, loaded.config.n_action_steps, 3)
