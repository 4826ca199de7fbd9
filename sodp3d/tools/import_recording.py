"""Recordings of a robot, or of other software, as a store: `sodp3d import <format> <path> <store>`.

sodp3d import folder recordings/cup data/cup
sodp3d import robomimic lift.hdf5 data/lift keys=[object] leave_out=[robot0_eye_in_hand_image]
"""

import sys
from pathlib import Path
from typing import Any

from sodp3d.core.cli import command
from sodp3d.core.progress import episodes_done
from sodp3d.core.sections import read_keys
from sodp3d.settings import CommonSettings, ImportSettings
from sodp3d.tools.card import write_card


@command("import", words=("format", "path", "store"))
def main(config: dict[str, Any]) -> None:
    """Import, write the store's card, and say what was kept and lost."""
    read_keys(CommonSettings, config)
    settings = read_keys(ImportSettings, config)
    assert settings.store is not None
    from sodp3d.exchange.importing import import_recording

    folder = Path(settings.store).expanduser()
    with episodes_done(str(folder)) as progress:
        made = import_recording(settings, progress)
    count = f"{made.episodes} episodes, {made.steps} steps"
    sys.stdout.write(f"{folder}: {count} (card: {write_card(folder)})\n")
    sys.stdout.write(report(made.kept, made.lost))
    sys.stdout.writelines(f"left out  {name}: {reason}\n" for name, reason in made.left_out)


def report(kept: Any, lost: Any) -> str:
    """Lines of what was kept, as what, and what was lost, and why."""
    width = max(map(len, [*kept, *lost]), default=0)
    lines = [f"kept  {key:<{width}}  {what}" for key, what in kept.items()]
    lines += [f"lost  {key:<{width}}  {why}" for key, why in lost.items()]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
