"""Pre-train, fine-tune or evaluate a planner.

python train.py mode=pretrain obs=pointcloud env=adroit_door
python train.py mode=finetune obs=pointcloud env=adroit_door
python train.py mode=eval     obs=pointcloud env=adroit_door
"""

from typing import Any

from sodp3d.cli import command


@command("train")
def main(config: dict[str, Any]) -> None:
    """Run the stage that `mode=` names."""
    from sodp3d.learning.stages import STAGES

    STAGES[config["mode"]](config)


if __name__ == "__main__":
    main()
