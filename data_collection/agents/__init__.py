"""Agents that learn while their experience is kept."""
