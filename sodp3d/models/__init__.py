"""Learned parts: encoders, the denoiser, diffusion, the planner and other methods' policies."""
