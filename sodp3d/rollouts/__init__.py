"""A policy in many environments: roll-outs and what they measure."""
