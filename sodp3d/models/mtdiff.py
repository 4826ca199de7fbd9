"""MTDiff (He et al., 2023): a transformer denoises plans of many tasks, told the task and the return that is wanted.

Shape letters: B batch, To observed steps, Tp planned steps, Ta executed steps, Da action size, K' sampling steps,
F = 128 features of a step, P steps of a prompt, W width.
"""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mish, one_hot, smooth_l1_loss

from sodp3d.core import draws
from sodp3d.core.errors import InputError
from sodp3d.core.sections import Count, Fraction, NotNegative, section
from sodp3d.data.dataset import WindowDataset
from sodp3d.envs.config import EnvConfig
from sodp3d.models.diffusion import Diffusion
from sodp3d.models.encoders import FEATURE_SIZE
from sodp3d.models.policy import LearnedPolicy, Memory, drawn
from sodp3d.models.policy_config import MethodConfig
from sodp3d.models.unet import sinusoidal
from sodp3d.settings import ModelSettings


@section("model")
class MTDiffSettings(ModelSettings):
    """The section `model` of method=mtdiff."""

    prompt: Literal["trajectory", "onehot"] = "trajectory"  # how the task is told
    prompts: Count = 4  # of each task, from its episodes of highest return
    prompt_steps: Count = 20  # P, spread over the episode
    width: Count = 256  # W
    layers: Count = 6
    heads: Count = 4
    dropout: Fraction = 0.1
    return_dropout: Fraction = 0.2  # share of windows that are not told their return
    target_return: Fraction = 1.0  # wanted when acting, 0 to 1 as the data's
    guidance: NotNegative = 1.2  # 0: as if no return were told; 1: as told; above: more so
    action_weight: NotNegative = 10.0  # of the current action in the loss; of the others 1

    def __post_init__(self) -> None:
        if self.width % (2 * self.heads):
            raise InputError(f"model.width: expected a multiple of twice model.heads={self.heads}, got {self.width}.")


class MTDiff(LearnedPolicy):
    """Plans Tp actions by a causal transformer over time, return, task, what was observed, and the noisy plan."""

    config: MethodConfig
    settings = MTDiffSettings
    labels = ("task", "return")
    default_sampling: ClassVar[Mapping[str, Any]] = {"sampling_steps": 20, "eta": 1.0, "sigma_floor": 0.0}

    def __init__(self, config: MethodConfig) -> None:
        super().__init__(config)
        own, width, tasks = self.own, self.own.width, len(config.tasks)
        self.of_time, self.of_return = two_layers(width, width), two_layers(1, width)
        self.no_return = nn.Parameter(torch.zeros(width))
        self.of_action, self.of_step = two_layers(config.action_size, width), nn.Linear(2 * FEATURE_SIZE, width)
        self.prompt_keys: list[str] = []
        if own.prompt == "trajectory":
            sizes = {"action": config.action_size, "agent_pos": config.proprioception_size}
            if len(config.sensor_shape) == 1:  # pictures and clouds are many times as large as all else of a step
                sizes[config.sensor_key] = config.sensor_shape[0]
            self.prompt_keys = list(sizes)
            for key, size in sizes.items():
                self.register_buffer(f"prompt_{key}", torch.zeros(tasks, own.prompts, own.prompt_steps, size))
            self.of_prompt = two_layers(sum(sizes.values()), width)
        else:
            self.of_task = nn.Linear(tasks, width)
        length = 2 + (own.prompt_steps if self.prompt_keys else 1) + config.n_obs_steps + config.horizon
        self.position = nn.Parameter(0.02 * torch.randn(length, width))
        self.scale = nn.LayerNorm(width)
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(
                width, own.heads, 4 * width, own.dropout, activation=mish, batch_first=True, norm_first=True
            )
            for _ in range(own.layers)
        )
        self.head = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, config.action_size))
        steps = config.sampling["sampling_steps"] if config.sampling else 1
        self.diffusion = Diffusion(own.denoising_steps, steps, own.prediction)

    @property
    def own(self) -> MTDiffSettings:
        """The section that it was made with."""
        assert isinstance(self.config.model, MTDiffSettings)
        return self.config.model

    def prepare(self, dataset: WindowDataset) -> None:
        """As `LearnedPolicy.prepare`, and the prompts."""
        super().prepare(dataset)
        if not self.prompt_keys:
            return
        first = dataset.episode_ends - np.diff(dataset.episode_ends, prepend=0)
        for task in range(len(self.config.tasks)):
            mine = np.flatnonzero(dataset.labels["task"][first] == task)
            best = mine[np.argsort(-dataset.labels["return"][first[mine]], kind="stable")]
            for place, episode in enumerate(np.resize(best, self.own.prompts)):
                rows = np.linspace(first[episode], dataset.episode_ends[episode] - 1, self.own.prompt_steps).round()
                for key in self.prompt_keys:
                    values = dataset.steps(key, rows.astype(np.int64))
                    self.get_buffer(f"prompt_{key}")[task, place] = torch.from_numpy(values)

    def context(self, features: Tensor, task: Tensor, prompt: Tensor) -> tuple[Tensor, Tensor]:
        """What stays the same along a chain: tokens of the task, (B, P or 1, W), and of what was observed, (B, To, W).

        features (B, To * F); task and prompt (B,), places among the tasks and a task's prompts.
        """
        if self.prompt_keys:
            steps = {key: self.get_buffer(f"prompt_{key}")[task, prompt] for key in self.prompt_keys}
            scaled = [self.normalizer.normalize(key, values) for key, values in steps.items()]
            told = self.of_prompt(torch.cat(scaled, dim=-1))
        else:
            told = self.of_task(one_hot(task, len(self.config.tasks)).to(features))[:, None]
        return told, self.of_step(features.unflatten(1, (self.config.n_obs_steps, -1)))

    def forward(self, plan: Tensor, timestep: Tensor, context: tuple[Tensor, Tensor], wanted: Tensor) -> Tensor:
        """Noisy plan (B, Tp, Da), timestep (B,), context, token of the return (B, W) -> noise or plan (B, Tp, Da)."""
        time = self.of_time(sinusoidal(timestep, self.own.width))
        tokens = torch.cat([torch.stack([time, wanted], dim=1), *context, self.of_action(plan)], dim=1)
        x = self.scale(tokens + self.position)
        later = torch.ones(x.shape[1], x.shape[1], dtype=torch.bool, device=x.device).triu(1)
        for block in self.blocks:
            x = block(x, src_mask=later, is_causal=True)
        return self.head(x[:, -plan.shape[1] :])

    def losses(self, batch: Mapping[str, Tensor], generator: torch.Generator | None = None) -> Tensor:
        """Huber loss of the noise (or plan) at a random step. batch: "action" (B, Tp, Da), observations, labels."""
        clean = self.normalizer.normalize("action", batch["action"])
        size, device = (len(clean),), clean.device
        timestep = draws.integers(self.own.denoising_steps, size, generator, device=device)
        noise = draws.normal(clean.shape, generator, device=device)
        prompt = draws.integers(self.own.prompts, size, generator, device=device)
        told = draws.uniform(size, generator, device=device) >= self.own.return_dropout
        wanted = torch.where(told[:, None], self.of_return(batch["return"][:, None]), self.no_return)
        context = self.context(self.encode(batch), batch["task"], prompt)
        predicted = self(self.diffusion.add_noise(clean, noise, timestep), timestep, context, wanted)
        error = smooth_l1_loss(predicted, self.diffusion.target(clean, noise), reduction="none").mean(dim=2)
        weight = torch.ones_like(error[0])
        weight[self.config.n_obs_steps - 1] = self.own.action_weight
        return (weight * error).sum(1) / weight.sum()

    def begin(self, task: EnvConfig, seed: int) -> Memory:
        """As `Policy.begin`, with one of the task's prompts."""
        memory: Memory = super().begin(task, seed)
        memory.held = int(torch.randint(self.own.prompts, (), generator=memory.generator))
        return memory

    @torch.no_grad()
    def act(self, observation: Mapping[str, NDArray[Any]], memories: Sequence[Memory]) -> NDArray[Any]:
        """As `Policy.act`: plans of the return that is wanted, away from those of no matter which (guidance)."""
        config, places = self.config, [(memory.task, memory.held) for memory in memories]
        task, prompt = torch.tensor(places, device=self.device).unbind(1)
        context = self.context(self.encode(self.on_device(observation)), task, prompt)
        twice = context[0].repeat(2, 1, 1), context[1].repeat(2, 1, 1)
        wanted = self.of_return(torch.full((1, 1), self.own.target_return, device=self.device))[0]
        size, steps = len(memories), len(self.diffusion.timesteps)
        returns = torch.cat([wanted.expand(size, -1), self.no_return.expand(size, -1)])
        noise = drawn(memories, steps + 1, config.horizon, config.action_size).to(self.device)
        plan = noise[:, 0]
        for step in range(steps):
            index = torch.full((1,), step, device=self.device)
            timestep = self.diffusion.timesteps[index].expand(2 * size)
            told, untold = self(plan.repeat(2, 1, 1), timestep, twice, returns).chunk(2)
            output = untold + self.own.guidance * (told - untold)
            mean, deviation = self.diffusion.ddim_moments(output, plan, index, config.sampling["eta"])
            plan = mean + deviation.clamp(min=config.sampling["sigma_floor"]) * noise[:, step + 1]
        start = config.n_obs_steps - 1
        return self.actions(plan)[:, start : start + config.n_action_steps].cpu().numpy()


def two_layers(size_in: int, width: int) -> nn.Sequential:
    """An MLP with Mish: (..., size_in) -> (..., width)."""
    return nn.Sequential(nn.Linear(size_in, width), nn.Mish(), nn.Linear(width, width))
