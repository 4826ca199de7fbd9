"""Planners and stores given to others and taken from them: packages with digests, wherever they lie."""
