"""A planner as one graph, from observation and noise to actions in raw units, for runtimes without this package.

The sampler's steps are unrolled, the normalizer is inside, and with a critic the choice among plans too. All noise is
an input, so that a plan follows from what goes in. Each export is run and compared with the planner before it gets its
name.

Inputs `agent_pos`, the sensor's key, `noise`, and with a critic `elapsed`; outputs `actions` and `plan`; float32,
images uint8. Shape letters: B batch, any number at each call; To observed steps, Tp planned steps, Ta executed steps,
Da action size, K' sampling steps, N plans of which a critic chooses.
"""

import copy
import importlib.util
import json
import logging
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from sodp3d.core import checkpoint
from sodp3d.core.errors import InputError
from sodp3d.core.files import disk_errors, fsync, partial_path, remove, remove_leftovers
from sodp3d.models.convolution import Convolution
from sodp3d.models.critic import Choice
from sodp3d.models.encoders import PointCloudEncoder
from sodp3d.models.loading import checkpoint_of, load_choice, load_policy_and_state
from sodp3d.models.planner import Planner
from sodp3d.models.sampled import plans_of

TOLERANCE = 1e-4  # of actions scaled to [-1, 1]
METADATA = "sodp3d.json"  # key of what a file says of its planner
OUTPUTS = ("actions", "plan")
_BATCHES = (1, 2, 5)  # that a graph is compared with; it was traced with the second
Arrays = dict[str, NDArray[Any]]
Runner = Callable[[Arrays], list[NDArray[np.float32]]]  # inputs by name -> the outputs


class PlanGraph(nn.Module):
    """`forward(*inputs)` in the order of `names`. choice: how it chooses among several plans."""

    def __init__(self, planner: Planner, choice: Choice | None = None) -> None:
        super().__init__()
        self.planner = copy.deepcopy(planner).eval()
        self.choice = choice
        self.critic = copy.deepcopy(choice.critic).eval() if choice else None  # so that its weights are the module's
        for part in self.planner.modules():  # the same functions, by operations that every runtime has
            if isinstance(part, Convolution):
                part.longest = 0
            elif isinstance(part, PointCloudEncoder):
                part.dense = True
        self.names = (*self.planner.config.observation_shapes(), "noise", *(["elapsed"] if choice else []))

    def forward(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
        """Observations (B, To, ...), noise (B, K'+1, Tp, Da) -> executed actions (B, Ta, Da), plan (B, Tp, Da).

        With a critic: noise (B, N, K'+1, Tp, Da), and elapsed (B,), the share of the time limit that is gone.
        """
        given = dict(zip(self.names, inputs, strict=True))
        features, options = self.planner.encode(given), self.planner.sampler
        if self.choice is None:
            chain = self.planner.sample_chain(features, given["noise"], options)
        else:
            assert self.critic is not None
            choice = Choice(self.critic, self.choice.count)
            chain = choice.sample(self.planner, features, given["elapsed"], given["noise"], options)
        plan = self.planner.actions(chain.latents[:, -1])
        return self.planner.executed(plan), plan

    def inputs(self, size: int, seed: int = 0) -> Arrays:
        """Made-up inputs of `size` observations, from all over the range of the training data."""
        random, config, normalizer = np.random.default_rng(seed), self.planner.config, self.planner.normalizer
        found: Arrays = {}
        for key, shape in config.observation_shapes().items():
            if key in normalizer.sizes:
                scaled = torch.from_numpy(random.uniform(-1, 1, (size, *shape)).astype(np.float32))
                found[key] = normalizer.unnormalize(key, scaled).numpy()
            else:
                found[key] = random.integers(0, 256, (size, *shape), np.uint8)
        several = [self.choice.count] if self.choice else []
        shape = (size, *several, config.inference_steps + 1, config.horizon, config.action_size)
        found["noise"] = random.normal(size=shape).astype(np.float32)
        if self.choice:
            found["elapsed"] = random.uniform(size=size).astype(np.float32)
        return found

    @torch.no_grad()
    def expected(self, inputs: Arrays, planner: Planner) -> NDArray[np.float32]:
        """The plans (B, Tp, Da) of the planner itself, from the same inputs."""
        observation = {key: inputs[key] for key in planner.config.observation_shapes()}
        noise, elapsed = torch.from_numpy(inputs["noise"]), torch.from_numpy(inputs.get("elapsed", np.zeros(1)))
        plans: NDArray[np.float32] = planner.plan(observation, noise, choice=self.choice, elapsed=elapsed)
        return plans


def largest_difference(graph: PlanGraph, planner: Planner, run: Runner) -> float:
    """Between `run` and the planner, over batches of several sizes; actions scaled to [-1, 1]."""
    scale = planner.normalizer.get_buffer("scale_action").numpy()
    found = []
    for size in _BATCHES:
        inputs = graph.inputs(size, seed=size)
        expected, (actions, plan) = graph.expected(inputs, planner), run(inputs)
        pairs = ((plan, expected), (actions, planner.executed(expected)))
        found += [float(np.abs((made - wanted) * scale).max()) for made, wanted in pairs]
    return max(found)


def export_torch(source: Path, target: Path) -> str:
    """Write the planner at `source` as a torch.export program, a .pt2 file; a line that says how it was checked.

    Raises InputError where `source` is no planner, `target` exists, or the program does not plan as the planner does.
    """

    def write(program: Any, graph: PlanGraph, described: str, path: Path) -> Runner:
        with path.open("wb") as file:
            torch.export.save(program, file, extra_files={METADATA: described})
        with path.open("rb") as written:
            module = torch.export.load(written).module()

        @torch.no_grad()
        def run(inputs: Arrays) -> list[NDArray[np.float32]]:
            return [made.numpy() for made in module(*(torch.from_numpy(inputs[name]) for name in graph.names))]

        return run

    return _export(source, target, ".pt2", write)


def export_onnx(source: Path, target: Path) -> str:
    """Write the planner at `source` as an .onnx file, compared in ONNX Runtime; otherwise as `export_torch`."""
    missing = [name for name in ("onnx", "onnxscript", "onnxruntime") if importlib.util.find_spec(name) is None]
    if missing:
        raise InputError(
            f"export: {' and '.join(missing)} not installed; pip install onnx onnxscript onnxruntime (the extra onnx)."
        )

    def write(program: Any, graph: PlanGraph, described: str, path: Path) -> Runner:
        with _quiet():
            made = torch.onnx.export(program, input_names=graph.names, output_names=OUTPUTS, dynamo=True, verbose=False)
        assert made is not None
        made.model.metadata_props[METADATA] = described
        path.write_bytes(made.model_proto.SerializeToString())
        return onnx_runner(path)

    return _export(source, target, ".onnx", write)


def onnx_runner(path: Path, threads: int | None = None) -> Runner:
    """Runs an .onnx file in ONNX Runtime on the CPU. threads: PyTorch's number unless given."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    return lambda inputs: session.run(list(OUTPUTS), inputs)


def _export(source: Path, target: Path, suffix: str, write: Callable[[Any, PlanGraph, str, Path], Runner]) -> str:
    """Trace the planner, `write` it, compare what was written, then give it its name."""
    if target.suffix != suffix:
        raise InputError(f"path: expected the name of a {suffix} file, got {target}.")
    if target.exists():
        raise InputError(f"path: {target} exists and is not overwritten; name another file.")
    planner, state = _planner(source)
    graph = PlanGraph(planner, load_choice(source))
    inputs = tuple(torch.from_numpy(value) for value in graph.inputs(_BATCHES[1]).values())
    batch = torch.export.Dim("batch")
    with torch.no_grad(), _quiet():
        program = torch.export.export(graph, inputs, dynamic_shapes={"inputs": tuple({0: batch} for _ in inputs)})
    described = json.dumps(_description(graph, source, state), sort_keys=True)
    with disk_errors(target, "nothing was written"):
        target.parent.mkdir(parents=True, exist_ok=True)
        remove_leftovers(target)
        partial = partial_path(target)
        try:
            found = largest_difference(graph, planner, write(program, graph, described, partial))
            if not found <= TOLERANCE:
                raise InputError(
                    f"export: the {suffix} file plans otherwise than the planner, by up to {found:.2g} of actions "
                    f"scaled to [-1, 1], where {TOLERANCE:g} is allowed; nothing was written. Please report it."
                )
            fsync(partial)
            partial.replace(target)
        finally:
            remove(partial)
    return f"{target}: inputs {', '.join(graph.names)}; differs from the planner by at most {found:.1g} of [-1, 1]"


def _planner(source: Path) -> tuple[Planner, dict[str, Any]]:
    policy, state = load_policy_and_state(source)
    if not isinstance(policy, Planner):
        raise InputError(
            f"export: {source} is of method={policy.config.method}. A graph from one observation to one plan is made "
            "of planners (method=sodp, dp3, simple_dp3, diffusion_policy); serve the others from Python (load_policy)."
        )
    return policy, state


def _description(graph: PlanGraph, source: Path, state: Mapping[str, Any]) -> dict[str, Any]:
    """What a file says of itself."""
    config = graph.planner.config
    return {
        "inputs": {name: ["batch", *value.shape[1:]] for name, value in graph.inputs(1).items()},
        "outputs": {
            "actions": ["batch", config.n_action_steps, config.action_size],
            "plan": ["batch", config.horizon, config.action_size],
        },
        "planner": config.to_dict(),
        "best_of": plans_of(graph.choice),
        "digest": checkpoint.digest_of(checkpoint_of(source)),
        **{key: state[key] for key in ("tasks", "view", "data_hash") if key in state},
    }


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what the exporters tell their own developers."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")]
    levels = [logger.level for logger in loggers]
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
