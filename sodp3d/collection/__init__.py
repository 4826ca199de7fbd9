"""Agents that learn while their experience is kept, and what is made of it."""
