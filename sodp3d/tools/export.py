"""A store as other software reads it, or a planner as one graph: `sodp3d export <store or planner> <format> <path>`.

sodp3d export data/cup lerobot datasets/cup rate=10
sodp3d export outputs/finetune/adroit_door-pointcloud-sodp/<run> onnx door.onnx

Formats of planners stand in `registry.EXPORTS`, those of stores in `registry.FORMATS`.
"""

import sys
from pathlib import Path
from typing import Any

from sodp3d.core import registry
from sodp3d.core.cli import command
from sodp3d.core.progress import episodes_done
from sodp3d.core.sections import read_keys
from sodp3d.settings import CommonSettings, ExportSettings
from sodp3d.tools.import_recording import report


@command("export", words=("store", "format", "path"))
def main(config: dict[str, Any]) -> None:
    """Export, and say what was kept and lost, or how the graph was compared."""
    read_keys(CommonSettings, config)
    settings = read_keys(ExportSettings, config)
    assert settings.format is not None and settings.path is not None and settings.store is not None
    registry.load_plugins()  # they may add formats
    registry.require({**registry.FORMATS, **registry.EXPORTS}, settings.format, "format")
    if settings.format in registry.EXPORTS:
        export = registry.choose(registry.EXPORTS, settings.format, "format")
        sys.stdout.write(f"{export(Path(settings.store).expanduser(), Path(settings.path).expanduser())}\n")
        return
    from sodp3d.exchange.exporting import export_recording

    with episodes_done(settings.path) as progress:
        made = export_recording(settings, progress)
    sys.stdout.write(f"{settings.path}: {made.episodes} episodes, {made.steps} steps\n{report(made.kept, made.lost)}")


if __name__ == "__main__":
    main()
