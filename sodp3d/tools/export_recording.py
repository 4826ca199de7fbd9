"""A store as other software reads it: `sodp3d export <store> <format> <path>`.

sodp3d export data/cup lerobot datasets/cup rate=10
"""

import sys
from typing import Any

from sodp3d.core.cli import command, positional
from sodp3d.core.progress import episodes_done
from sodp3d.core.sections import read_keys
from sodp3d.settings import CommonSettings, ExportSettings
from sodp3d.tools.import_recording import report


@command("export", complete=positional("store", "format", "path"))
def main(config: dict[str, Any]) -> None:
    """Export, and say what was kept and lost."""
    read_keys(CommonSettings, config)
    settings = read_keys(ExportSettings, config)
    from sodp3d.exchange.exporting import export_recording

    with episodes_done(str(settings.path)) as progress:
        made = export_recording(settings, progress)
    sys.stdout.write(f"{settings.path}: {made.episodes} episodes, {made.steps} steps\n{report(made.kept, made.lost)}")


if __name__ == "__main__":
    main()
