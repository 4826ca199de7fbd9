"""sodp3d: from sub-optimal experience seen through a depth camera to working visual policies."""

__version__ = "0.1.0"
