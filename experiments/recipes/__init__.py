"""Runs of published models as settings, and what they need of memory."""
