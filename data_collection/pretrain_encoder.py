"""VRL3's stage 1: python data_collection/pretrain_encoder.py images=<folder> output=<file.safetensors>"""

import os
import sys
from pathlib import Path

PROJECT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(PROJECT))  # runs from any folder, installed or not
os.environ.setdefault("SODP3D_ROOT", str(PROJECT))  # data/ and outputs/ are the checkout's own

if __name__ == "__main__":  # imported only here: worker processes import this file again
    from sodp3d.collection.pretrain_encoder import main

    main()
