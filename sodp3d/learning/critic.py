"""How a critic learns from all roll-outs kept, and what plans in imagination are worth by it.

Shape letters: R remembered chunks, B batch, S states, G plans of one state, M members, F features, Ta executed steps,
Da actions, K' denoising steps, Tp planned steps.
"""

import copy
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from sodp3d.core import checkpoint
from sodp3d.learning.buffers import EpisodeRecord, draw
from sodp3d.learning.checks import require_finite
from sodp3d.learning.ppo import return_to_go
from sodp3d.models.critic import Choice, Critic, CriticConfig, executed_chunks
from sodp3d.models.diffusion import ChainOptions
from sodp3d.models.ensemble_gradients import ForwardPass
from sodp3d.models.planner import Planner
from sodp3d.settings import CriticSettings


class Rows:
    """Plans to draw batches from, as the buffers of episodes are."""

    def __init__(self, rows: dict[str, Tensor]) -> None:
        self.rows = rows

    def __len__(self) -> int:
        return len(next(iter(self.rows.values())))

    def sample(self, batch_size: int, generator: torch.Generator) -> dict[str, Tensor]:
        """Drawn uniformly with replacement: every key (batch_size, ...), and "index", their positions."""
        return draw(self.rows, batch_size, generator)


@dataclass(frozen=True)
class Imagined:
    """G fresh plans of each of S states: rows (S * G), their conservative advantages (S * G,), and the chosen ones.

    best: (S * G,) whether a plan is the best of its state, and by all members better than the state's others.
    """

    plans: Rows
    credit: Tensor
    best: Tensor

    def chosen(self) -> Rows:
        """The best plans alone."""
        return Rows({key: value[self.best] for key, value in self.plans.rows.items()})


class CriticLearner:
    """A critic, its slow average, its optimizer, and the transitions between chunks that it learns from.

    The target of a chunk is its reward + discount * the average's mean value of the chunk after it: the one that was
    executed, or where the episode was cut or `refresh` drew one, the planner's own. With a discount of
    1 values are of the time left, so nothing comes after the time limit.
    """

    def __init__(self, planner: Planner, settings: CriticSettings, seed: int) -> None:
        self.settings = settings
        torch.manual_seed(seed)
        config = CriticConfig(
            planner.config.feature_size,
            planner.config.n_action_steps * planner.config.action_size,
            settings.members,
            settings.width,
            settings.layers,
            timed=settings.discount == 1,  # below 1 the time limit is none of the task's; at 1 an episode ends there
            activation="relu",
        )
        self.critic = Critic(config).to(planner.device)
        self.average = copy.deepcopy(self.critic).requires_grad_(False)
        self.optimizer = torch.optim.Adam(self.critic.parameters(), lr=settings.learning_rate, fused=True)
        self.rows: dict[str, Tensor] = {}
        self.batches = torch.Generator().manual_seed(seed)
        self.noise = torch.Generator(planner.device).manual_seed(seed)
        self.updates = 0
        self.calibration = torch.zeros(2, 0)  # values and returns of the newest roll-outs, before it learned from them

    def choice(self, count: int) -> Choice | None:
        """Best of `count` by this critic; None for one plan, and as long as it has not learned."""
        return Choice(self.critic, count) if count > 1 and self.updates else None

    def take(self, records: Iterable[EpisodeRecord], planner: Planner, options: ChainOptions) -> None:
        """Remember the transitions of episodes with features; the oldest go beyond `replay_chunks`."""
        new = [self._transitions(record, planner, options) for record in records]
        old = [self.rows] if self.rows else []
        keep = self.settings.replay_chunks
        self.rows = {key: torch.cat([rows[key] for rows in (*old, *new)])[-keep:] for key in new[0]}

    def _transitions(self, record: EpisodeRecord, planner: Planner, options: ChainOptions) -> dict[str, Tensor]:
        chunks = executed_chunks(planner, record.latents[:, -1])
        final = record.final["features"][None]
        after = self._plans(planner, final.to(planner.device), options).cpu()
        features = record.observation["features"]
        continues = torch.ones(len(chunks))
        continues[-1] = float(not record.terminated and not self.critic.config.timed)
        return {
            "features": features,
            "elapsed": record.elapsed,
            "chunk": chunks,
            "reward": record.reward,
            "next_features": torch.cat([features[1:], final]),
            "next_elapsed": torch.cat([record.elapsed[1:], record.elapsed[-1:]]),  # one that knows the time ends there
            "next_chunk": torch.cat([chunks[1:], after]),
            "continues": continues,
        }

    @torch.no_grad()
    def calibrate(self, records: list[EpisodeRecord], planner: Planner, scale: float) -> dict[str, float]:
        """How its values compare with the returns of roll-outs that it has not learned from yet.

        A return is the discounted sum of the rewards / scale that came, and beyond a time limit the value of the last
        chunk, unless the discount is 1. Where plans are chosen by the critic, a growing bias says that it is exploited.
        """
        if not self.updates or not records:
            return {}
        values, returns = [], []
        for record in records:
            features, elapsed = (x.to(self.critic.mean) for x in (record.observation["features"], record.elapsed))
            chunks = executed_chunks(planner, record.latents[:, -1])[:, None].to(features)
            values.append(self.critic(features, elapsed, chunks).mean(0)[:, 0].cpu())
            rewards = record.reward / scale
            if not record.terminated and not self.critic.config.timed:
                rewards[-1] = values[-1][-1]
            returns.append(return_to_go(rewards, self.settings.discount))
        self.calibration = torch.stack([torch.cat(values), torch.cat(returns)])
        bias = float((self.calibration[0] - self.calibration[1]).mean())
        deviations = self.calibration.std(dim=1)
        correlation = float(torch.corrcoef(self.calibration)[0, 1]) if bool((deviations > 0).all()) else 0.0
        return {"critic/bias": bias, "critic/correlation": correlation}

    @torch.no_grad()
    def _plans(self, planner: Planner, features: Tensor, options: ChainOptions) -> Tensor:
        """One executed chunk of each state, (B, Ta, Da)."""
        chain = planner.sample_chain(features, planner.noise(len(features), self.noise), options)
        return executed_chunks(planner, chain.latents[:, -1])

    def refresh(self, planner: Planner, options: ChainOptions) -> None:
        """Draw the planner's own next chunk for some of what is remembered, instead of what was executed."""
        count = min(self.settings.refreshed_chunks, len(self.rows["reward"]))
        index = torch.randperm(len(self.rows["reward"]), generator=self.batches)[:count]
        for part in index.split(256) if count else ():
            features = self.rows["next_features"][part].to(planner.device)
            self.rows["next_chunk"][part] = self._plans(planner, features, options).cpu()

    def learn(self, updates: int, scale: float) -> dict[str, float]:
        """Gradient steps on what is remembered, `first_updates` before all others; rewards are divided by `scale`.

        Raises FloatingPointError before it changes anything where the loss is not finite.
        """
        if not self.updates:
            self.critic.standardize(self.rows["features"].to(self.critic.mean))
            self.average.load_state_dict(self.critic.state_dict())
            updates += self.settings.first_updates
        losses: list[Tensor] = []
        values: list[Tensor] = []
        ours: list[Tensor] = list(self.critic.parameters())
        slow: list[Tensor] = list(self.average.parameters())
        for update in range(self.updates, self.updates + updates):
            batch = self._batch()
            states = self.critic.states(batch["features"], batch["elapsed"])
            found = ForwardPass(self.critic, states, batch["chunk"].flatten(1))
            errors = found.values - self.target(batch, scale)
            losses.append(errors.square().mean())
            values.append(found.values.mean())
            require_finite({"loss": losses[-1]}, f"finetune: the critic's update {update}")
            for parameter, gradient in zip(ours, found.of_parameters(2 / errors.numel() * errors), strict=True):
                parameter.grad = gradient
            self.optimizer.step()
            with torch.no_grad():
                torch._foreach_lerp_(slow, ours, self.settings.averaging)
        self.updates += updates
        if not losses:
            return {}
        return {"critic/loss": float(torch.stack(losses).mean()), "critic/value": float(torch.stack(values).mean())}

    def _batch(self) -> dict[str, Tensor]:
        drawn = draw(self.rows, self.settings.batch_size, self.batches)
        return {key: value.to(self.critic.mean.device) for key, value in drawn.items()}

    @torch.no_grad()
    def target(self, batch: Mapping[str, Tensor], scale: float) -> Tensor:
        """(B,) chunk reward / scale + discount * mean of the averaged members at the next chunk, 0 after the end."""
        following = self.average(batch["next_features"], batch["next_elapsed"], batch["next_chunk"][:, None])
        after = batch["continues"] * following[..., 0].mean(0)
        return batch["reward"] / scale + self.settings.discount * after

    @torch.no_grad()
    def imagine(self, planner: Planner, options: ChainOptions) -> "Imagined":
        """Fresh plans of remembered states, and what they are worth."""
        states, plans = self.settings.states, self.settings.group
        index = torch.randint(len(self.rows["reward"]), (states,), generator=self.batches)
        features, elapsed = (self.rows[key][index].to(self.critic.mean) for key in ("features", "elapsed"))
        parts = []
        for some in features.split(max(1, 256 // plans)):
            noise = planner.noise(len(some) * plans, self.noise)
            parts.append(planner.sample_chain(some.repeat_interleave(plans, dim=0), noise, options))
        latents = torch.cat([part.latents for part in parts])
        chunks = executed_chunks(planner, latents[:, -1]).unflatten(0, (states, plans))
        credit = conservative_advantage(self.critic(features, elapsed, chunks))
        rows = {
            "features": features.repeat_interleave(plans, dim=0),
            "latents": latents,
            "means": torch.cat([part.means for part in parts]),
            "executed": torch.full((states * plans,), planner.config.n_action_steps),
        }
        best = credit == credit.amax(1, keepdim=True).clamp(min=1e-8)
        return Imagined(
            Rows({key: value.cpu() for key, value in rows.items()}), credit.flatten().cpu(), best.flatten().cpu()
        )

    def state_dict(self) -> dict[str, Tensor]:
        """Plain tensors, all a later run needs to go on exactly."""
        return {
            **checkpoint.with_prefix("critic", self.critic.state_dict()),
            **checkpoint.with_prefix("average", self.average.state_dict()),
            **checkpoint.with_prefix("optimizer", checkpoint.optimizer_tensors(self.optimizer)),
            **checkpoint.with_prefix("rows", self.rows),
            "batches": self.batches.get_state(),
            "noise": self.noise.get_state(),
            "updates": torch.tensor(self.updates),
            "calibration": self.calibration,
        }

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Inverse of `state_dict`."""
        self.critic.load_state_dict(checkpoint.without_prefix("critic", state))
        self.average.load_state_dict(checkpoint.without_prefix("average", state))
        checkpoint.load_optimizer(self.optimizer, checkpoint.without_prefix("optimizer", state))
        self.rows = checkpoint.without_prefix("rows", state)
        checkpoint.restore_generator(self.batches, state["batches"])
        checkpoint.restore_generator(self.noise, state["noise"])
        self.updates = int(state["updates"])
        self.calibration = state["calibration"].clone()


def conservative_advantage(values: Tensor) -> Tensor:
    """What all members agree on (OGPO): values (M, S, G) -> (S, G).

    Each member's advantage is its value minus its mean over the state's own group. Where all are positive, it is the
    least of them; where all are negative, the greatest; where they disagree, 0.
    """
    advantage = values - values.mean(-1, keepdim=True)
    least, greatest = advantage.amin(0), advantage.amax(0)
    return least.clamp(min=0) + greatest.clamp(max=0)
