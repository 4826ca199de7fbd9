"""Stored episodes: the Zarr store, point clouds, windows and normalization."""
