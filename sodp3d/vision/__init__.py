"""How depth becomes clouds, for environments, data and robots alike: cameras, renderers, point clouds."""
