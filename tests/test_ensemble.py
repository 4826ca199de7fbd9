"""The ensemble that RLPD's critics and the critic of chunks are made of: equal to networks that are by themselves."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import mish, relu

from sodp3d.models.critic import Critic, CriticConfig
from sodp3d.models.ensemble import Activation, Ensemble
from sodp3d.models.ensemble_gradients import ForwardPass

STATE, CHUNK, WIDTH, MEMBERS = 3, 2, 8, 4


def make_ensemble(layers: int = 2, activation: Activation = relu, normalized: bool = True) -> Ensemble:
    torch.manual_seed(0)
    ensemble = Ensemble(MEMBERS, STATE, CHUNK, WIDTH, layers, activation, normalized).double()
    with torch.no_grad():
        for parameter in ensemble.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return ensemble


def separate(ensemble: Ensemble, member: int) -> nn.Sequential:
    """The same network as PyTorch's own layers, which take state and chunk in one row."""

    def linear(weight: Tensor, bias: Tensor) -> nn.Linear:
        layer = nn.Linear(len(weight), len(bias), dtype=torch.float64)
        layer.weight.data, layer.bias.data = weight.T.clone(), bias.clone()
        return layer

    first = torch.cat([ensemble.of_state.weight[member], ensemble.of_chunk.weight[member]]).detach()
    weights = [first, *(layer.weight[member].detach() for layer in (*ensemble.hidden, ensemble.head))]
    biases = [layer.bias[member, 0].detach() for layer in (ensemble.of_state, *ensemble.hidden, ensemble.head)]
    modules: list[nn.Module] = []
    for place, (weight, bias) in enumerate(zip(weights, biases, strict=True)):
        modules.append(linear(weight, bias))
        if place < len(weights) - 1:
            if ensemble.gains:
                norm = nn.LayerNorm(ensemble.width, dtype=torch.float64)
                norm.weight.data = ensemble.gains[place][member, 0].detach().clone()
                norm.bias.data = ensemble.shifts[place][member, 0].detach().clone()
                modules.append(norm)
            modules.append(nn.ReLU() if ensemble.activation is relu else nn.Mish())
    return nn.Sequential(*modules)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("normalized", [False, True])
@pytest.mark.parametrize("activation", [relu, mish], ids=["relu", "mish"])
def test_values_and_gradients_are_those_of_separate_networks(
    layers: int, normalized: bool, activation: Activation
) -> None:
    ensemble = make_ensemble(layers, activation, normalized)
    states, targets = torch.randn(6, STATE).double(), torch.randn(6).double()
    chunks = torch.randn(6, 1, CHUNK).double().requires_grad_()
    values = ensemble.values(states, chunks)
    (values[..., 0] - targets).square().mean(1).sum().backward()
    of_chunks = torch.zeros_like(chunks)
    for member in range(MEMBERS):
        network, alone = separate(ensemble, member), chunks.detach()[:, 0].requires_grad_()
        found = network(torch.cat([states, alone], dim=1))[:, 0]
        torch.testing.assert_close(values[member, :, 0], found)
        (found - targets).square().mean().backward()
        assert alone.grad is not None
        of_chunks[:, 0] += alone.grad
        layers_of = [module for module in network if isinstance(module, nn.Linear)]
        first = torch.cat([grad(ensemble.of_state.weight)[member], grad(ensemble.of_chunk.weight)[member]])
        torch.testing.assert_close(grad(layers_of[0].weight).T, first)
        torch.testing.assert_close(grad(layers_of[0].bias), grad(ensemble.of_state.bias)[member, 0])
        for ours, theirs in zip((*ensemble.hidden, ensemble.head), layers_of[1:], strict=True):
            torch.testing.assert_close(grad(theirs.weight).T, grad(ours.weight)[member])
            torch.testing.assert_close(grad(theirs.bias), grad(ours.bias)[member, 0])
        norms = [module for module in network if isinstance(module, nn.LayerNorm)]
        assert len(norms) == len(ensemble.gains) == (layers if normalized else 0)
        for place, norm in enumerate(norms):
            torch.testing.assert_close(grad(norm.weight), grad(ensemble.gains[place])[member, 0])
            torch.testing.assert_close(grad(norm.bias), grad(ensemble.shifts[place])[member, 0])
    torch.testing.assert_close(grad(chunks), of_chunks)


@pytest.mark.parametrize("layers", [1, 3])
@pytest.mark.parametrize("normalized", [False, True])
def test_gradients_in_closed_form_are_autograd_s(layers: int, normalized: bool) -> None:
    ensemble = make_ensemble(layers, relu, normalized)
    states, slopes = torch.randn(6, STATE).double(), torch.randn(MEMBERS, 6).double()
    chunks = torch.randn(6, CHUNK).double().requires_grad_()
    values = ensemble.values(states, chunks[:, None])[..., 0]
    (values * slopes).sum().backward()
    found = ForwardPass(ensemble, states, chunks.detach())
    torch.testing.assert_close(found.values, values)
    torch.testing.assert_close(found.of_chunks(slopes), grad(chunks))
    for gradient, parameter in zip(found.of_parameters(slopes), ensemble.parameters(), strict=True):
        torch.testing.assert_close(gradient, grad(parameter))


def test_other_activations_have_no_closed_form() -> None:
    with pytest.raises(ValueError, match="relu"):
        ForwardPass(make_ensemble(activation=mish), torch.zeros(1, STATE), torch.zeros(1, CHUNK))


def grad(parameter: Tensor | None) -> Tensor:
    assert parameter is not None and parameter.grad is not None
    return parameter.grad


def test_chosen_members_are_rows_of_all_of_them() -> None:
    ensemble, states, chunks = make_ensemble(), torch.randn(6, STATE).double(), torch.randn(6, 5, CHUNK).double()
    chosen = torch.tensor([3, 1])
    torch.testing.assert_close(ensemble.values(states, chunks, chosen), ensemble.values(states, chunks)[chosen])


def test_many_chunks_of_a_state_are_valued_as_one_at_a_time() -> None:
    ensemble, states, chunks = make_ensemble(), torch.randn(6, STATE).double(), torch.randn(6, 5, CHUNK).double()
    alone = torch.cat([ensemble.values(states, chunks[:, index : index + 1]) for index in range(5)], dim=2)
    torch.testing.assert_close(ensemble.values(states, chunks), alone)


def test_checkpoints_of_earlier_critics_fit() -> None:
    """The names, shapes and order that releases before the ensemble had; optimizers number parameters by the order."""
    critic = Critic(CriticConfig(feature_size=7, chunk_size=6, members=2, width=4, layers=2))
    shapes = {
        "of_state.weight": (2, 8, 4), "of_state.bias": (2, 1, 4), "of_chunk.weight": (2, 6, 4),
        "hidden.0.weight": (2, 4, 4), "hidden.0.bias": (2, 1, 4), "head.weight": (2, 4, 1), "head.bias": (2, 1, 1),
        "gains.0": (2, 1, 4), "gains.1": (2, 1, 4), "shifts.0": (2, 1, 4), "shifts.1": (2, 1, 4),
    }  # fmt: skip
    assert [(name, tuple(value.shape)) for name, value in critic.named_parameters()] == list(shapes.items())
    assert set(critic.state_dict()) == {*shapes, "mean", "deviation"}
