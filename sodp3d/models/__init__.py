"""Learned parts: encoders, the denoiser, diffusion and the planner."""
