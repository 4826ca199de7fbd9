"""Timing shared by the benchmarks: alternatives take turns in one run, so that a ratio sees the same machine."""

import argparse
import functools
import json
import math
import platform
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from sodp3d.core.versions import git_commit

CHECKOUT = Path(__file__).resolve().parents[1]
RESULTS = CHECKOUT / "results" / "benchmarks"


def parse(parser: argparse.ArgumentParser) -> tuple[argparse.Namespace, list[str]]:
    """A benchmark's own arguments, and the words <key>=<value> anywhere among them, which are options of train.py."""
    options = [word for word in sys.argv[1:] if "=" in word and not word.startswith("-")]
    return parser.parse_args([word for word in sys.argv[1:] if word not in options]), options


def operations(run: Callable[[], Any]) -> int:
    """Floating-point operations in the matrix products of one call."""
    from torch.utils.flop_counter import FlopCounterMode

    def of_product(gathered: Any, one: Any, other: Any, *_: Any, **__: Any) -> int:
        return 2 * math.prod(one) * int(other[-1])  # shapes, (..., n, k) and (..., k, m)

    in_place = {torch.ops.aten.addmm_: of_product, torch.ops.aten.baddbmm_: of_product}  # torch counts none of these
    with FlopCounterMode(display=False, custom_mapping=in_place) as counter:
        run()
    return counter.get_total_flops()


def compare(alternatives: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Best seconds of each alternative over `rounds` turns, after one turn to warm up."""
    best = dict.fromkeys(alternatives, float("inf"))
    finished = torch.cuda.synchronize if torch.cuda.is_available() else lambda: None
    for turn in range(rounds + 1):
        for name, run in alternatives.items():
            start = time.perf_counter()
            run()
            finished()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


class Stopwatch:
    """Notes when each call of the functions that it is given begins and ends, in seconds."""

    def __init__(self) -> None:
        self.begins: list[float] = []
        self.ends: list[float] = []

    def __call__(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, timed."""

        @functools.wraps(function)
        def timed(*arguments: Any, **options: Any) -> Any:
            self.begins.append(time.perf_counter())
            result = function(*arguments, **options)
            self.ends.append(time.perf_counter())
            return result

        return timed

    @property
    def seconds(self) -> list[float]:
        """That each call took."""
        return [end - begin for begin, end in zip(self.begins, self.ends, strict=True)]


def processor() -> str:
    """Its model and, where it has them, its units for bfloat16 products, which decide such ratios."""
    facts = Path("/proc/cpuinfo")
    text = facts.read_text() if facts.exists() else ""
    models = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    units = [unit for unit in ("avx512_bf16", "amx_bf16") if unit in text]
    return ", ".join([models[0] if models else platform.machine(), *units])


def write(name: str, result: dict[str, Any], show: bool = True) -> None:
    """Write results/benchmarks/<name>.json with the machine, versions and commit, and print it where it is to show."""
    machine = {
        "processor": processor(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "git_commit": git_commit(),
    }
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**result, "machine": machine}, indent=2, allow_nan=False)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    if show:
        print(text)
