"""How planners are evaluated: section `evaluation`."""

from sodp3d.core.errors import InputError
from sodp3d.core.sections import Count, Natural, NotNegative, resource, section
from sodp3d.core.seeds import FIRST_SEED


def require_held_out(key: str, seeds: range) -> None:
    """Raise InputError where seeds reach those that learning uses."""
    if seeds.stop > FIRST_SEED:
        raise InputError(
            f"{key}: seeds from {FIRST_SEED} on are for collection and fine-tuning; expected all below, "
            f"got {len(seeds)} seeds from {seeds.start} on."
        )


@section("evaluation")
class EvaluationSettings:
    """Episodes on held-out seeds: a test, and a validation by which the best checkpoint is chosen."""

    episodes: Count = 50
    first_seed: Natural = 100_000  # of `episodes` consecutive ones
    validation_seed: Natural = 200_000  # of `validation_episodes` consecutive ones
    validation_episodes: Count = 40
    environments: Count = resource(50)  # stepped at once
    eta: NotNegative | None = None  # of the sampler; null: the planner's own
    sigma_floor: NotNegative | None = None  # normalized action units; null: the planner's own
    videos: Natural = resource(2)

    def __post_init__(self) -> None:
        require_held_out("evaluation.first_seed", self.test_seeds)
        require_held_out("evaluation.validation_seed", self.validation_seeds)
        test, validation = self.test_seeds, self.validation_seeds
        if max(test.start, validation.start) < min(test.stop, validation.stop):
            raise InputError(
                f"evaluation.validation_seed: expected other seeds than the test's {test.start} to {test.stop - 1}, "
                f"got {validation.start} to {validation.stop - 1}; the best checkpoint would flatter itself."
            )

    @property
    def test_seeds(self) -> range:
        """Seeds of the reported episodes."""
        return range(self.first_seed, self.first_seed + self.episodes)

    @property
    def validation_seeds(self) -> range:
        """Seeds of the episodes by which the best checkpoint is chosen."""
        return range(self.validation_seed, self.validation_seed + self.validation_episodes)
