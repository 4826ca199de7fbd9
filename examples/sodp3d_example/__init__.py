"""What this package adds to sodp3d: a name in a table for each thing, and a YAML in `configs/` where it has options."""

from sodp3d.core import registry

registry.FAMILIES["table"] = "sodp3d_example.puck:Puck"  # env=puck
registry.AGENTS["proportional"] = "sodp3d_example.proportional:build"  # agent=proportional
registry.ENCODERS["mean_max"] = "sodp3d_example.mean_max:MeanMaxEncoder"  # model.encoder=mean_max
registry.REGULARIZERS["anchored"] = "sodp3d_example.anchored:Anchored"  # reg.name, by algorithm=anchored
