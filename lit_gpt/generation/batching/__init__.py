"""Continuous batching: requests share forward passes, join and leave between them, and share what they begin alike."""
