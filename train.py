"""Pre-train, fine-tune or evaluate a planner: python train.py mode=pretrain obs=pointcloud env=adroit_door"""

import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent
sys.path.insert(0, str(PROJECT))  # runs from any folder, installed or not
os.environ.setdefault("SODP3D_ROOT", str(PROJECT))  # data/ and outputs/ are the checkout's own

if __name__ == "__main__":  # imported only here: worker processes import this file again
    from sodp3d.learning.stages import main

    main()
