"""Fine-tuning on a task's reward: sections `finetune`, `finetune.sampler` and `reg`."""

from dataclasses import field
from typing import Annotated, Any, Literal

from sodp3d.core.errors import InputError
from sodp3d.core.sections import (
    Count,
    Expected,
    Flag,
    Fraction,
    Natural,
    NotNegative,
    Positive,
    Several,
    Share,
    Text,
    resource,
    section,
)

KlBound = Annotated[Positive | None, Expected("a number above 0, or null for no bound")]


@section("finetune.sampler")
class SamplerSettings:
    """The sampler of training roll-outs, and so their likelihood; as `ChainOptions` explains."""

    eta: NotNegative = 1.0
    sigma_floor: NotNegative = 0.1  # normalized action units
    floor_steps: Literal["all", "last", "all_but_last"] = "all_but_last"
    noise_clip: Positive | None = None  # standard deviations
    reduction: Literal["mean", "sum"] = "mean"
    rows: Literal["executed", "all"] = "executed"


@section("finetune.critic")
class CriticSettings:
    """An ensemble of action values of chunks, learned from all roll-outs kept, and plans imagined by it."""

    members: Natural = 0  # 0: no critic
    width: Count = 256
    layers: Count = 3
    learning_rate: NotNegative = 3e-4
    batch_size: Count = 256  # chunks
    discount: Share = 0.97  # per chunk
    averaging: Share = 0.02  # of the target's weights, per update
    first_updates: Natural = 1500  # before all others
    updates_per_episode: Natural = 25
    refreshed_chunks: Natural = 0  # per iteration: next chunks drawn anew from the planner
    replay_chunks: Count = 100_000
    states: Count = 256  # to plan for in imagination, per iteration
    group: Count = 8  # plans of each


@section("finetune.branches")
class BranchSettings:
    """Plans executed from one stored simulator state, whose returns are compared (finetune.credit=branch)."""

    group: Several = 4  # plans of a state, with the episode's own
    states: Count = 2  # of each episode
    capacity: Count = 2048  # plans remembered


@section("reg")
class RegularizerSettings:
    """What each regularizer has."""

    name: Text = "bc"
    weight: NotNegative = 1.0  # lambda
    options: Annotated[dict[str, Any], Expected("a section of its class's own options")] = field(default_factory=dict)


@section("finetune.large_steps")
class LargeStepSettings:
    """Gradient steps of the importance term alone, after an iteration's cloning; without any it is part of each."""

    updates: Natural = 0  # per iteration
    batch_size: Count = 1024  # plans, each with all its denoising steps
    learning_rate: NotNegative = 3e-5


@section("finetune")
class FinetuneSettings:
    """Roll-outs, what is remembered of them, and the gradient steps on them (paper, Algorithm 1).

    An algorithm (configs/algorithm/) gives all values. The defaults here are sodp_chunk's, what earlier records mean.
    """

    episodes: Count = 120  # online episodes in all
    episodes_per_iteration: Count = 8
    updates_per_episode: Count = 10  # gradient steps
    batch_size: Count = 256  # plans cloned
    importance_batch_size: Count = 26  # plans of the importance term; each with all its denoising steps
    learning_rate: NotNegative = 1e-4
    final_learning_rate: Share = 0.1  # of the first
    importance_weight: NotNegative = 0.01
    large_steps: LargeStepSettings = field(default_factory=LargeStepSettings)
    clip: NotNegative = 0.01  # of the ratio
    first_clip: NotNegative | None = None  # at the chain's first step, from which it grows to `clip`; null: the same
    denoising_discount: Fraction = 1.0  # of a step's weight, per step before the last
    tuned_steps: Count | None = None  # last denoising steps that the importance term is of; null: all
    target_kl: KlBound = 0.02  # ends the importance term of an iteration; nats per element and denoising step
    adaptive_learning_rate: Flag = False  # by the KL
    credit: Literal["chunk", "return_to_go", "gae", "critic", "branch"] = "chunk"
    baseline: Literal["none", "mean", "time", "value"] = "time"
    discount: Share = 1.0  # per chunk
    gae_lambda: Fraction = 0.95
    scale_reward: Flag = True
    normalize_credit: Flag = False
    gradient_norm: Positive = 1.0  # bound
    value_learning_rate: NotNegative = 1e-3
    value_updates: Natural = 50  # gradient steps of the value head, per iteration
    value_warmup: Natural = 0  # gradient steps of it before the first iteration
    critic: CriticSettings = field(default_factory=CriticSettings)
    branches: BranchSettings = field(default_factory=BranchSettings)
    best_of: Count = 1  # plans of each step of a roll-out, of which the critic chooses
    tested_best_of: Count = 1  # the same in validations and tests, and by default of the planner that is saved
    choice: Literal["always", "earned"] = "always"  # whether it chooses, or only where roll-outs succeed more often so
    chosen_share: Fraction = 0.0  # of the cloned plans: the critic's choice among imagined ones
    sampler: SamplerSettings = field(default_factory=SamplerSettings)
    initial_proficient: Count = 10  # episodes, N_init
    initial_attempts: Count = 50  # episodes
    replay_episodes: Count = 64
    target_episodes: Count = 200
    best_returns: Count = 10  # episodes
    cloned_until: Literal["success", "end"] = "end"  # of a proficient episode
    encoder: Literal["frozen", "tuned"] = "frozen"
    from_scratch: Flag = False
    offline: Text | None = None  # run directory
    collapse: Fraction = 0.5  # of the best validation; 0: never goes back
    setback: NotNegative | None = None  # standard deviations of roll-outs' success; null: never goes back
    evaluate_every: Natural = 24  # episodes; 0: never
    checkpoint_every: Count = resource(default=8)  # episodes
    compile: Flag = resource(default=False)  # the denoiser into CUDA graphs, of updates and roll-outs

    def __post_init__(self) -> None:
        if self.credit == "gae" and self.baseline == "value":
            raise InputError(
                "finetune.baseline: finetune.credit=gae subtracts the value already, got value; "
                "use finetune.baseline=none, mean or time."
            )
        if self.adaptive_learning_rate and (self.target_kl is None or self.importance_weight == 0):
            raise InputError(
                "finetune.adaptive_learning_rate: it follows the importance term's KL; give finetune.target_kl and a "
                "finetune.importance_weight above 0, or leave it false."
            )
        if self.large_steps.updates and self.importance_weight == 0:
            raise InputError(
                f"finetune.large_steps.updates: {self.large_steps.updates} steps of the importance term are of no use "
                "with finetune.importance_weight=0; use 0 of them, or a weight above 0."
            )
        needing = [
            *(["finetune.credit=critic"] if self.credit == "critic" else []),
            *([f"finetune.best_of={self.best_of}"] if self.best_of > 1 else []),
            *([f"finetune.tested_best_of={self.tested_best_of}"] if self.tested_best_of > 1 else []),
            *([f"finetune.chosen_share={self.chosen_share:g}"] if self.chosen_share else []),
        ]
        if needing and not self.critic.members:
            raise InputError(f"finetune.critic.members: {needing[0]} needs a critic, got 0 members; use 5, say.")
        if self.choice == "earned" and self.best_of == 1 and self.tested_best_of > 1:
            raise InputError(
                f"finetune.choice: the critic earns its choice in roll-outs, but finetune.best_of=1 leaves it none; "
                f"use finetune.best_of={self.tested_best_of}, or finetune.choice=always."
            )
        if self.critic.members and self.encoder != "frozen":
            raise InputError(
                "finetune.critic: it learns from features, which a tuned encoder would change under it; use "
                "finetune.encoder=frozen, or an algorithm without a critic: algorithm=sodp_chunk."
            )
        if self.critic.members and self.offline is not None:
            raise InputError(
                "finetune.offline: another run kept its successes alone, and of those no critic learns what fails; use "
                "algorithm=sodp_chunk, the paper's two terms, or algorithm=clone."
            )
        if self.credit == "branch" and (self.best_of > 1 or self.offline is not None or self.importance_weight == 0):
            raise InputError(
                "finetune.credit: branch compares plans that the planner draws and executes, for the importance term; "
                "use finetune.best_of=1, finetune.importance_weight above 0 and no finetune.offline, or another credit."
            )
        if self.credit == "branch" and self.discount != 1:
            raise InputError(
                f"finetune.discount: with finetune.credit=branch a return is the sum of all rewards to the episode's "
                f"end, got {self.discount:g}; use finetune.discount=1, or another credit."
            )
        if self.from_scratch and (self.encoder == "frozen" or self.target_kl is not None):
            raise InputError(
                "finetune.from_scratch: a planner from scratch must learn its encoder, and its first roll-outs are "
                "another planner's, beyond any bound on KL; use algorithm=sodp_scratch, or finetune.encoder=tuned "
                "finetune.target_kl=null."
            )

        self._refuse_unread()

    def _refuse_unread(self) -> None:
        """Raise InputError for what nothing would read."""
        if self.credit in ("critic", "branch") and self.baseline == "value":
            raise InputError(
                f"finetune.baseline: finetune.credit={self.credit} compares plans of one state, and learns no value of "
                "states; use finetune.baseline=none, or another credit."
            )
        if self.credit == "critic" and self.discount != 1:
            raise InputError(
                f"finetune.discount: with credit=critic it is finetune.critic.discount, got {self.discount:g}; "
                "use finetune.discount=1, and set that one."
            )
        if self.critic.members and not self.critic.first_updates + self.critic.updates_per_episode:
            raise InputError(
                "finetune.critic: 0 first_updates and 0 updates_per_episode teach it nothing; use some, or "
                "finetune.critic.members=0 finetune.best_of=1 finetune.tested_best_of=1."
            )

    def check_regularizer(self, regularizer: RegularizerSettings) -> None:
        """Raise InputError where neither term of the loss is left, or plans are chosen for nothing."""
        if self.importance_weight == 0 and (regularizer.weight == 0 or regularizer.name == "none"):
            raise InputError(
                f"finetune.importance_weight: 0 with reg.name={regularizer.name} and reg.weight={regularizer.weight:g} "
                "leaves nothing to learn from; use algorithm=clone for direct BC, or a weight above 0."
            )
        if self.chosen_share and (regularizer.weight == 0 or regularizer.name in ("none", "kl", "pl")):
            raise InputError(
                f"finetune.chosen_share: the critic's plans are cloned, which reg.name={regularizer.name} with "
                f"reg.weight={regularizer.weight:g} does not; use reg.name=bc with a weight above 0, or 0 of them."
            )
