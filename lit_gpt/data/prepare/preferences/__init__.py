"""Preferences: rows with a desired and an undesired answer, their layouts, and how they become tokens."""
