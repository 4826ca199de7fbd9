"""The `sodp3d` command: one verb for each thing to do, with the options of the scripts in a checkout."""

import sys
from importlib import import_module

VERBS = {  # verb: (module with `main`, what it does); in the order in which they are used
    "doctor": ("sodp3d.tools.doctor", "what is installed, which renderer draws and how fast, and what to fix"),
    "collect": ("sodp3d.collection.collect", "let an agent learn, and keep its experience with depth images"),
    "record": ("sodp3d.collection.record", "keep a trained agent's successes as demonstrations"),
    "convert": ("sodp3d.collection.convert", "depth images to point clouds; draw RGB, or depth of another camera"),
    "train": ("sodp3d.learning.stages", "mode=pretrain, finetune or distill: make a planner"),
    "eval": ("sodp3d.learning.stages", "success rates of a planner on held-out episodes, and videos"),
    "serve": ("sodp3d.serving.serve", "let robots plan with a planner, over the network (openpi-client's protocol)"),
    "replay": ("sodp3d.tools.replay", "videos of a run's roll-outs, or of collected episodes"),
    "card": ("sodp3d.tools.card", "what is in a data set, as Markdown"),
    "view": ("sodp3d.tools.view", "look at a data set: one HTML page"),
    "report": ("sodp3d.tools.report", "data, curves, success and videos before and after, as one HTML page"),
    "extract": ("sodp3d.tools.extract", "some episodes of a store as a store of their own"),
    "import": ("sodp3d.tools.import_recording", "recordings of a robot, or of other software, as a store"),
    "merge": ("sodp3d.tools.merge", "stores that were collected apart, as one"),
    "push": ("sodp3d.sharing.push", "give a planner or a store to others: Hugging Face, a folder, an archive"),
    "pull": ("sodp3d.sharing.pull", "take one from others, each file held to its digest"),
    "export": ("sodp3d.tools.export", "a store as other software reads it, or a planner as one graph: onnx, torch"),
    "results": ("sodp3d.results.__main__", "tables and figures from run directories and stores"),
    "summary": ("sodp3d.tools.summary", "where the newest run of each stage left what"),
    "pretrain-encoder": ("sodp3d.collection.pretrain_encoder", "VRL3's stage 1: an image encoder from labelled images"),
    "completion": ("sodp3d.tools.completion", "shell completion: how to switch it on"),
}


def usage() -> str:
    """What `sodp3d --help` prints."""
    lines = [f"  {verb:<17} {does}" for verb, (_, does) in VERBS.items()]
    return "\n".join(
        ["usage: sodp3d <verb> [options]", "", *lines, "", "sodp3d <verb> --help lists a verb's options.\n"]
    )


def main() -> None:
    """Run the verb that the command line names."""
    verb, *options = sys.argv[1:] or ["--help"]
    if verb in ("-h", "--help", "help"):
        sys.stdout.write(usage())
        return
    if verb in ("-V", "--version", "version"):
        from sodp3d import __version__

        sys.stdout.write(f"sodp3d {__version__}\n")
        return
    if verb not in VERBS:
        sys.stderr.write(f"error: sodp3d has no verb {verb!r}; it has {', '.join(VERBS)}.\n")
        sys.exit(2)
    mode = next((option for option in options if option.startswith("mode=")), "mode=eval")
    if verb == "eval" and mode != "mode=eval":
        sys.stderr.write(f"error: sodp3d eval is mode=eval, but {mode} came; use: sodp3d train {mode}\n")
        sys.exit(2)
    sys.argv = [f"sodp3d {verb}", *(["mode=eval"] if verb == "eval" else []), *options]
    module = import_module(VERBS[verb][0])
    sys.exit(module.main(VERBS) if verb == "completion" else module.main())


if __name__ == "__main__":
    main()
