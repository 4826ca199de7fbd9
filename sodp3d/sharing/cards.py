"""Cards of what is shared: a README.md for people, with front matter that Hugging Face reads.

All that comes from records is escaped. The same run gives the same card.
"""

import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from sodp3d.core.errors import InputError
from sodp3d.core.files import read_json
from sodp3d.core.mappings import flat, plain
from sodp3d.core.run import read_config, read_result, read_versions
from sodp3d.data.absence import can_be_made
from sodp3d.data.store import EpisodeStore
from sodp3d.envs.config import RECORDED
from sodp3d.models.loading import checkpoint_of
from sodp3d.models.policy import LearnedPolicy, method_class
from sodp3d.rollouts.evaluate import check_summary
from sodp3d.tools.card import MARK, card_text, usual_choice
from sodp3d.tools.card_figures import draw_figures
from sodp3d.tools.markdown import escape, header, row
from sodp3d.tools.runs import run_options

Measured = list[tuple[str, dict[str, Any]]]  # (words, what `Evaluation.summary` says)


def planner_card(package: Path, policy: LearnedPolicy, licence: str | None, address: str) -> str:
    """Of the planner in `package`, from its record there. address: where it can be pulled from."""
    config, versions = read_config(package), read_versions(package)
    state = read_json(checkpoint_of(package) / "state.json")
    measured = list(_measured(package))
    method = [policy.config.method, *filter(None, [config.get("algorithm")])]
    title = f"{config['env']['name']}: planner, obs={policy.config.observation}"
    sections = [
        [MARK, "", f"# {escape(title)}", "", _SUMMARY],
        ["## Success", "", *_success(measured)],
        ["## What it is", "", *_planner_rows(policy, config, state, versions, method)],
        ["## How to use it", "", *_use(address, config)],
        ["## What is in here", "", _CONTENTS + _EPISODES * (package / "evaluation").is_dir()],
    ]
    return _front_matter(_planner_facts(title, policy, state["tasks"], measured, licence)) + _joined(sections)


def store_card(store: EpisodeStore, folder: Path, licence: str | None, address: str) -> str:
    """The data set's card, as `sodp3d card` writes it, for a package in `folder`, where its pictures are drawn."""
    pictures = draw_figures(store, folder / "card") if len(store) else []
    env = " ".join(str(store.attributes["env"]).split())  # one line, whatever is in it
    facts = {
        "pretty_name": f"{env}: {len(store)} episodes{' with depth' * ('depth' in store.keys)}",
        **({"license": licence} if licence else {}),
        "task_categories": ["robotics"],
        "tags": ["robotics", "sodp3d", "zarr", env],
        "viewer": False,
    }
    pulled = f"sodp3d pull {address} {shlex.quote(f'data/{env}')}"
    converts = "point_cloud" not in store.specification and can_be_made(store, "point_cloud")
    convert = [shlex.join(["sodp3d", "convert", *usual_choice(store)])] if converts else []
    use = ["```bash", pulled, *convert, "```"]
    return _front_matter(facts) + card_text(store, pictures) + _joined([["", "## How to use it", "", *use]])


_SUMMARY = (
    "A policy made by sodp3d: it turns what a camera sees, and where the joints are, into the next actions. Weights "
    "are safetensors, everything else is JSON, YAML or numbers; none of it is code."
)
_CONTENTS = (
    "`checkpoints/` holds the weights that act, with the critic that chooses among plans where there is one, and no "
    "optimizer. `config.yaml`, `versions.json` and `result.json` say how it was made and what came of it. "
    "`sodp3d.json` lists all files with their sha256."
)
_EPISODES = " `evaluation/` holds the actions of its test episodes, for `sodp3d replay`."


def _measured(package: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """What the pushed weights did in their test episodes; and the planner that fine-tuning began with."""
    result = read_result(package) if (package / "result.json").exists() else {}
    if result.get("before"):
        yield "before fine-tuning", result["before"]
    kept = sorted(package.glob("evaluation/*/evaluation.json"))
    recorded = [result.get("best") or result.get("evaluation"), *dict(result.get("tasks") or {}).values()]
    told = [read_json(path) for path in kept] or [summary for summary in recorded if summary]
    yield from ((str(summary["env"]), summary) for summary in told)


def _success(measured: Measured) -> Iterator[str]:
    if not measured:
        yield "Not measured yet."
        return
    yield from header("planner", "success by", "rate", "95 % interval", "episodes", "seeds", "mean return")
    for words, summary in measured:
        try:
            check_summary(summary)
        except (ValueError, TypeError, LookupError) as error:
            raise InputError(f"{words}: its record of success is damaged ({error}).") from None
        metric, (first, last) = summary["headline_metric"], summary["seeds"]
        rate = {name: f"{100 * value:.1f}" for name, value in summary["success"][metric].items()}
        interval, seeds = f"{rate['low95']} to {rate['high95']} %", f"{first} to {last}"
        yield row(
            words, metric, f"{rate['rate']} %", interval, summary["episodes"], seeds, f"{summary['return_mean']:.4g}"
        )
    yield "\nThe interval is Wilson's. `any`: the goal was held at any time; `count`: long enough; `final`: at the end."


def _planner_rows(
    policy: LearnedPolicy,
    config: Mapping[str, Any],
    state: Mapping[str, Any],
    versions: Mapping[str, str],
    method: list[str],
) -> Iterator[str]:
    made, view = policy.config, flat(state.get("view", {}))
    yield from header("what", "value")
    yield row("method", ", ".join(method))
    yield row("tasks that it was trained on", ", ".join(state["tasks"]))
    yield row("made by", f"mode={config.get('mode')}, seed {config.get('seed')}")
    shapes = ", ".join(f"{key} {shape}" for key, shape in made.observation_shapes().items())
    yield row("sees", f"{shapes}: steps first")
    yield row("acts", f"{made.n_action_steps} steps of {made.action_size} numbers at a time, of {made.horizon} planned")
    yield from (row(name.replace("_", " "), value) for name, value in made.sampling.items())
    yield row("plans of which its critic chooses", state.get("best_of", 1))
    yield row("parameters", f"{sum(parameter.numel() for parameter in policy.parameters()):,}")
    yield from (row(f"view: {name}", plain(value)) for name, value in sorted(view.items()))
    yield row("hash of the data that it learned from", state["data_hash"])
    yield from (row(name.replace("_", " "), value) for name, value in sorted(versions.items()))


def _use(address: str, config: Mapping[str, Any]) -> list[str]:
    chosen = shlex.join(run_options(config))
    simulated, plans = not of_recordings(config), makes_planners(config)
    return [
        "```bash",
        f"sodp3d pull {address} planner",
        *([f"sodp3d eval {chosen} planner=planner"] if simulated else []),
        *([f"sodp3d train mode=finetune {chosen} planner=planner"] if simulated and plans else []),
        *(["sodp3d serve run=planner"] if plans else []),
        "```",
        "",
        "```python",
        "from sodp3d import load_policy",
        "",
        'policy = load_policy("planner")',
        "```",
    ]


def of_recordings(config: Mapping[str, Any]) -> bool:
    """Whether a run learned from recordings: nothing simulates these, so its planner is served or loaded, no more."""
    return bool(config["env"].get("family") == RECORDED)


def makes_planners(config: Mapping[str, Any]) -> bool:
    """Whether a run's method makes planners, which alone are fine-tuned and served. Of a missing plug-in's: no."""
    try:
        return method_class(config.get("method", "sodp")).tunable
    except InputError:
        return False


def _planner_facts(
    title: str, policy: LearnedPolicy, tasks: list[str], measured: Measured, licence: str | None
) -> dict[str, Any]:
    """What Hugging Face's pages and searches take from a card."""
    results = [
        {
            "task": {"type": "robotics", "name": "robotics"},
            "dataset": {"type": str(summary["env"]), "name": str(summary["env"])},
            "metrics": [
                {
                    "type": "success_rate",
                    "name": f"success in % ({summary['headline_metric']})",
                    "value": round(100 * summary["success"][summary["headline_metric"]]["rate"], 1),
                }
            ],
        }
        for words, summary in measured
        if words == summary["env"]
    ]
    return {
        "library_name": "sodp3d",
        "pipeline_tag": "robotics",
        **({"license": licence} if licence else {}),
        "tags": ["robotics", "sodp3d", policy.config.method, policy.config.observation, *tasks],
        **({"model-index": [{"name": title, "results": results}]} if results else {}),
    }


def _front_matter(facts: Mapping[str, Any]) -> str:
    return f"---\n{yaml.safe_dump(dict(facts), sort_keys=False, allow_unicode=True)}---\n"


def _joined(sections: list[list[str]]) -> str:
    return "\n\n".join("\n".join(lines).rstrip() for lines in sections) + "\n"
