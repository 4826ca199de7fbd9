"""Timing shared by the benchmarks: alternatives take turns in one run, so that a ratio sees the same machine."""

import json
import platform
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results" / "benchmarks"


def compare(alternatives: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Best seconds of each alternative over `rounds` turns, after one turn to warm up."""
    best = dict.fromkeys(alternatives, float("inf"))
    for turn in range(rounds + 1):
        for name, run in alternatives.items():
            start = time.perf_counter()
            run()
            if turn:
                best[name] = min(best[name], time.perf_counter() - start)
    return best


def processor() -> str:
    """Its model and, where it has them, its units for bfloat16 products, which decide such ratios."""
    facts = Path("/proc/cpuinfo")
    text = facts.read_text() if facts.exists() else ""
    models = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    units = [unit for unit in ("avx512_bf16", "amx_bf16") if unit in text]
    return ", ".join([models[0] if models else platform.machine(), *units])


def write(name: str, result: dict[str, Any]) -> None:
    """Write docs/results/benchmarks/<name>.json with the machine and versions, and print it."""
    machine = {"torch": torch.__version__, "threads": torch.get_num_threads(), "processor": processor()}
    RESULTS.mkdir(parents=True, exist_ok=True)
    text = json.dumps({**result, "machine": machine}, indent=2)
    (RESULTS / f"{name}.json").write_text(text + "\n")
    print(text)
