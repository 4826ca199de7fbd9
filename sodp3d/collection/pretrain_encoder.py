"""VRL3's stage 1: train its image encoder to classify a folder of images, such as ImageNet.

    sodp3d pretrain-encoder images=<folder> output=<file.safetensors>
    sodp3d collect env=adroit_door agent.encoder=pixels agent.stage1=<file.safetensors>

The folder holds train/<class>/* and val/<class>/*. The same command continues a stopped or killed run.
"""

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from sodp3d.core.cli import command
from sodp3d.core.errors import InputError
from sodp3d.core.machine import core_count
from sodp3d.core.paths import root
from sodp3d.core.sections import read_keys, read_section
from sodp3d.settings import CommonSettings, EncoderSettings, Stage1Settings, differences

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.utils.data import Dataset

    from sodp3d.core.run import Run

log = logging.getLogger(__name__)
_RAISED = f"{InputError.__module__}.{InputError.__name__}: "


@command("pretrain_encoder")
def main(config: dict[str, Any]) -> None:
    """Train on images/train, measure on images/val, write the encoder to `output`."""
    from sodp3d.collection.image_folder import list_images
    from sodp3d.core.device import prepare_torch
    from sodp3d.core.run import open_run

    named = read_keys(EncoderSettings, config)
    images, output = (Path(path or "").expanduser().resolve() for path in (named.images, named.output))
    settings, common = read_section(Stage1Settings, config["stage1"]), read_keys(CommonSettings, config)
    if isinstance(common.workers, str):
        raise InputError(f"workers: expected a number of processes, or null, got {common.workers!r}.")
    paths, labels, classes = list_images(images / "train")
    validation = list_images(images / "val", classes)[:2]
    log.info("%d images of %d classes to learn from, %d to validate", len(paths), len(classes), len(validation[0]))
    kept = {key: config[key] for key in ("stage1", "seed")}
    kept |= {"images": str(images), "image_count": len(paths), "output": str(output)}
    directory = Path(named.run_dir).expanduser() if named.run_dir else None
    device = prepare_torch(config)
    workers = core_count() if common.workers is None else common.workers
    run = open_run(root(config) / "outputs" / "stage1", kept, common.seed, directory, differences, common.tracker)
    stage = Stage1(settings, common.seed, len(classes), device, workers)
    _require_own(output, stage, run)
    with run:
        stage.load(run)
        accuracy = stage.train((paths, labels), validation, run)
        if accuracy is None or run.stop_requested:
            return
        _require_own(output, stage, run)  # another run may have written it meanwhile
        if not output.exists():
            stage.write(output, {"classes": len(classes), "accuracy": accuracy, "epochs": settings.epochs})
        run.finish({"accuracy": accuracy, "output": str(output)})
        log.info("validation accuracy %.1f %%; encoder in %s", 100 * accuracy, output)


def _require_own(output: Path, stage: "Stage1", run: "Run") -> None:
    """Raise InputError where somebody else's file is at `output`."""
    if output.exists() and not stage.wrote(output, run):
        raise InputError(f"output: {output} exists already and is never overwritten; name another.")


class Stage1:
    """Encoder, classifier and optimizer, and all that changes while they are trained.

    workers: processes that load images; 0: this one. Raises InputError on unreadable images.
    """

    def __init__(self, settings: Stage1Settings, seed: int, classes: int, device: "torch.device", workers: int) -> None:
        import torch
        from torch import nn

        from sodp3d.collection.agents.pixels import ResNet6

        self.settings, self.seed, self.device, self.workers = settings, seed, device, workers
        generator = torch.Generator().manual_seed(seed)
        self.encoder, self.classifier = ResNet6(generator), nn.Linear(ResNet6.size, classes)
        nn.init.normal_(self.classifier.weight, std=0.01, generator=generator)
        nn.init.zeros_(self.classifier.bias)
        self.model = nn.Sequential(self.encoder, self.classifier).to(device)
        self.optimizer = torch.optim.SGD(
            self.model.parameters(),
            lr=settings.learning_rate,
            momentum=settings.momentum,
            weight_decay=settings.weight_decay,
        )
        self.step = 0  # batches learned from
        self.recent: list[tuple[float, float]] = []  # (loss, accuracy) since the last line of the log

    def train(
        self, training: tuple[list[Path], list[int]], validation: tuple[list[Path], list[int]], run: "Run"
    ) -> float | None:
        """All epochs that are left; returns the last accuracy on the validation images, None when stopped before."""
        from sodp3d.collection.agents.pixels import IMAGE_SIZE
        from sodp3d.collection.image_folder import ImageFolder

        batch, epochs = self.settings.batch_size, self.settings.epochs
        per_epoch = -(-len(training[0]) // batch)
        run.rewind(self.step)
        unseen, total = ImageFolder(*validation, IMAGE_SIZE), epochs * per_epoch
        while True:
            epoch, done = divmod(self.step, per_epoch)
            if epoch and not done:
                accuracy = self.accuracy(unseen)
                run.log_once(self.step, {"validation/accuracy": accuracy})
                self.save(run)
                if self.step >= total:
                    return accuracy
            for group in self.optimizer.param_groups:
                group["lr"] = self.settings.learning_rate * 0.1 ** (epoch // self.settings.decay_every)
            order = np.random.default_rng((self.seed, epoch)).permutation(len(training[0]))
            dataset = ImageFolder(*training, IMAGE_SIZE, self.seed, epoch)
            if not self._epoch(dataset, order[batch * done :], run, total):
                return None

    def _epoch(self, dataset: "Dataset[Any]", order: Any, run: "Run", total: int) -> bool:
        """The rest of an epoch. Returns False when stopped before its end, after saving."""
        for images, labels in self._batches(dataset, order):
            self.recent.append(self._update(images, labels))
            self.step += 1
            if self.step % self.settings.log_every == 0:
                loss, hits = (sum(values) / len(self.recent) for values in zip(*self.recent, strict=True))
                run.log(self.step, {"train/loss": loss, "train/accuracy": hits}, total)
                self.recent.clear()
            if run.stop_requested or self.step % self.settings.checkpoint_every == 0:
                self.save(run)
            if run.stop_requested:
                return False
        return True

    def _batches(self, dataset: "Dataset[Any]", order: Any) -> "Iterator[tuple[Tensor, Tensor]]":
        from torch.utils.data import DataLoader

        loader: DataLoader[Any] = DataLoader(
            dataset,
            self.settings.batch_size,
            sampler=order.tolist(),
            num_workers=self.workers,
            multiprocessing_context="spawn" if self.workers else None,
            pin_memory=self.device.type == "cuda",
        )
        try:
            for images, labels in loader:
                yield images.to(self.device, non_blocking=True), labels.to(self.device, non_blocking=True)
        except InputError as error:  # a loading process puts its traceback before the message
            raise InputError(str(error).strip().splitlines()[-1].removeprefix(_RAISED)) from None

    def _update(self, images: "Tensor", labels: "Tensor") -> tuple[float, float]:
        """One step; returns loss and accuracy on the batch. Raises FloatingPointError where the loss is not finite."""
        from torch.nn.functional import cross_entropy

        self.model.train()
        scores = self.model(images)
        loss = cross_entropy(scores, labels)
        if not loss.isfinite():
            raise FloatingPointError(f"stage 1 diverged at batch {self.step}: loss {loss.item()}.")
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach().item(), (scores.argmax(1) == labels).float().mean().item()

    def accuracy(self, dataset: "Dataset[Any]") -> float:
        """Share of images whose best class is the right one."""
        import torch

        self.model.eval()
        hits = count = 0
        with torch.no_grad():
            for images, labels in self._batches(dataset, np.arange(len(dataset))):  # type: ignore[arg-type]
                hits += int((self.model(images).argmax(1) == labels).sum())
                count += len(labels)
        return hits / count

    # ---- state ------------------------------------------------------------------------------------------------------

    def save(self, run: "Run") -> None:
        """Publish a checkpoint of everything."""
        from sodp3d.core import checkpoint

        tensors = checkpoint.with_prefix("model", self.model.state_dict())
        tensors |= checkpoint.with_prefix("optimizer", checkpoint.optimizer_tensors(self.optimizer))
        checkpoint.save(run.checkpoints, self.step, tensors, {"recent": self.recent})

    def load(self, run: "Run") -> None:
        """Continue from the newest checkpoint, if there is one."""
        from sodp3d.core import checkpoint

        found = checkpoint.load_latest(run.checkpoints)
        if found is not None:
            self.step, tensors, state = found
            with checkpoint.restoring(checkpoint.path_of(run.checkpoints, self.step)):
                self.model.load_state_dict(checkpoint.without_prefix("model", tensors))
                checkpoint.load_optimizer(self.optimizer, checkpoint.without_prefix("optimizer", tensors))
                self.recent = [(float(loss), float(hits)) for loss, hits in state.get("recent", [])]
            log.info("resumed at batch %d", self.step)

    def wrote(self, output: Path, run: "Run") -> bool:
        """Whether `output` holds what the newest checkpoint of `run` does: it was killed before it was finished."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        from sodp3d.core import checkpoint

        found = checkpoint.load_latest(run.checkpoints)
        if found is None:
            return False
        try:
            there = load_file(output)
        except (SafetensorError, OSError):
            return False
        with checkpoint.restoring(checkpoint.path_of(run.checkpoints, found[0])):
            self.model.load_state_dict(checkpoint.without_prefix("model", found[1]))
        own = self._tensors()
        return own.keys() == there.keys() and all(value.equal(there[name]) for name, value in own.items())

    def _tensors(self) -> "dict[str, Tensor]":
        from sodp3d.collection.agents.pixels import CLASSIFIER
        from sodp3d.core.checkpoint import with_prefix

        tensors = self.encoder.state_dict() | with_prefix(CLASSIFIER, self.classifier.state_dict())
        return {name: value.cpu().contiguous() for name, value in tensors.items()}

    def write(self, output: Path, facts: Mapping[str, Any]) -> None:
        """Write encoder and classifier as one file, in one step; facts: for its header."""
        from safetensors.torch import save

        from sodp3d.core.files import disk_errors, replace_file

        header = {key: str(value) for key, value in facts.items()}
        with disk_errors(output, "the run's checkpoint stays"):
            output.parent.mkdir(parents=True, exist_ok=True)
            replace_file(output, save(self._tensors(), metadata=header), durable=True)


if __name__ == "__main__":
    main()
