"""How planners are evaluated: section `evaluation`."""

from sodp3d.core.errors import InputError
from sodp3d.core.sections import Count, Flag, Natural, NotNegative, resource, section
from sodp3d.core.seeds import FIRST_SEED, VALIDATION_SEEDS

_VALIDATION = f"{VALIDATION_SEEDS.start} to {VALIDATION_SEEDS.stop - 1}"


def require_validation(key: str, seeds: range) -> None:
    """Raise InputError where seeds are not all set apart for what is looked at while learning."""
    if seeds.start < VALIDATION_SEEDS.start or seeds.stop > VALIDATION_SEEDS.stop:
        raise InputError(
            f"{key}: expected all of {len(seeds)} consecutive seeds among {_VALIDATION}, which are for validation; "
            f"got {seeds.start} as the first."
        )


def require_test(key: str, seeds: range) -> None:
    """Raise InputError where a test's seeds reach those of validation or of learning."""
    if seeds.stop > FIRST_SEED:
        raise InputError(
            f"{key}: seeds from {FIRST_SEED} on are for collection and fine-tuning; expected all below, "
            f"got {len(seeds)} seeds from {seeds.start} on."
        )
    if seeds.start < VALIDATION_SEEDS.stop and VALIDATION_SEEDS.start < seeds.stop:
        raise InputError(
            f"{key}: seeds {_VALIDATION} are for validation, by which the best checkpoint is chosen; expected others, "
            f"got {len(seeds)} seeds from {seeds.start} on."
        )


@section("evaluation")
class EvaluationSettings:
    """Episodes on held-out seeds: a test, and a validation for all that is looked at or chosen while learning."""

    episodes: Count = 50
    first_seed: Natural = 100_000  # of `episodes` consecutive ones
    validation_seed: Natural = 200_000  # of `validation_episodes` consecutive ones
    validation_episodes: Count = 40
    environments: Count = resource(default=50)  # stepped at once
    eta: NotNegative | None = None  # of the sampler; null: the planner's own
    sigma_floor: NotNegative | None = None  # normalized action units; null: the planner's own
    best_of: Count | None = None  # plans of which the planner's critic chooses; null: as it was tested
    videos: Natural = resource(default=2)
    compile: Flag = resource(default=False)  # the denoiser into CUDA graphs

    def __post_init__(self) -> None:
        require_test("evaluation.first_seed", self.test_seeds)
        require_validation("evaluation.validation_seed", self.validation_seeds)

    @property
    def test_seeds(self) -> range:
        """Seeds of the reported episodes."""
        return range(self.first_seed, self.first_seed + self.episodes)

    @property
    def validation_seeds(self) -> range:
        """Seeds of the episodes that are looked at while learning, and by which the best checkpoint is chosen."""
        return range(self.validation_seed, self.validation_seed + self.validation_episodes)
