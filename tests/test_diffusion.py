"""The schedule and DDIM moments against diffusers' DDIMScheduler."""

import pytest
import torch
from diffusers import DDIMScheduler

from sodp3d.core.errors import InputError
from sodp3d.models.diffusion import ChainOptions, Diffusion, trailing_timesteps


def reference(prediction: str, steps: int = 100, inference_steps: int = 10) -> DDIMScheduler:
    scheduler = DDIMScheduler(
        num_train_timesteps=steps,
        beta_schedule="squaredcos_cap_v2",
        clip_sample=True,
        set_alpha_to_one=True,
        prediction_type=prediction,
        timestep_spacing="trailing",
    )
    scheduler.set_timesteps(inference_steps)
    return scheduler


@pytest.mark.parametrize("inference_steps", [1, 2, 5, 10, 20, 50, 100])
def test_timesteps_and_schedule_equal_diffusers(inference_steps: int) -> None:
    scheduler = reference("epsilon", inference_steps=inference_steps)
    diffusion = Diffusion(100, inference_steps)
    torch.testing.assert_close(diffusion.timesteps, scheduler.timesteps)
    # diffusers multiplies 100 factors in float32, and the last values are of the order 1e-9.
    torch.testing.assert_close(diffusion.alpha_bar, scheduler.alphas_cumprod, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("prediction", ["epsilon", "sample"])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("scale", [0.05, 1.0])  # the larger one makes x0 leave [-1, 1], so that clipping matters
def test_moments_equal_diffusers_at_every_step(prediction: str, eta: float, scale: float) -> None:
    """One call with a different step for each sample gives what one scalar-timestep call per step gives."""
    scheduler, diffusion = reference(prediction), Diffusion(prediction=prediction)
    generator = torch.Generator().manual_seed(0)
    x_k, output, noise = (torch.randn(10, 4, 3, generator=generator) for _ in range(3))
    output = output * scale
    mean, sigma = diffusion.ddim_moments(output, x_k, torch.arange(10), eta)
    sample = mean + sigma * noise
    for index, timestep in enumerate(scheduler.timesteps):
        one = slice(index, index + 1)
        expected = scheduler.step(output[one], int(timestep), x_k[one], eta=eta, variance_noise=noise[one])
        torch.testing.assert_close(sample[one], expected.prev_sample, rtol=1e-4, atol=1e-4)


def test_add_noise_equals_diffusers() -> None:
    generator = torch.Generator().manual_seed(0)
    clean, noise = torch.randn(2, 100, 4, 3, generator=generator)
    timestep = torch.arange(100)
    expected = reference("epsilon").add_noise(clean, noise, timestep)
    torch.testing.assert_close(Diffusion().add_noise(clean, noise, timestep), expected, rtol=1e-4, atol=1e-5)


def test_sigma_of_the_last_step_is_zero_and_decreases() -> None:
    sigma = Diffusion().sigma(torch.arange(10), eta=1.0)
    assert sigma[-1] == 0
    assert (sigma[1:] < sigma[:-1]).all()


def test_last_step_stays_in_range_without_noise() -> None:
    diffusion = Diffusion()
    output, x_k = 5 * torch.randn(2, 64, 4, 3, generator=torch.Generator().manual_seed(0))
    mean, _ = diffusion.ddim_moments(output, x_k, torch.full((64,), 9), eta=1.0)
    assert mean.abs().max() <= 1


@pytest.mark.parametrize("inference_steps", [0, 7, 16, 101])
def test_inference_steps_that_do_not_divide_are_refused(inference_steps: int) -> None:
    with pytest.raises(InputError, match=r"a divisor of the planner\'s 100 denoising steps \(1, 2, 4, 5, 10"):
        trailing_timesteps(100, inference_steps)


def test_bad_options_are_refused() -> None:
    with pytest.raises(InputError, match="expected one of epsilon, sample, got 'noise'"):
        Diffusion(prediction="noise")
    with pytest.raises(InputError, match="expected one of mean, sum, got 'max'"):
        ChainOptions(reduction="max")
    with pytest.raises(InputError, match="negative"):
        ChainOptions(sigma_floor=-0.1)
