"""Checks a submission by doing what the challenge's organizers do: build, start, wait, ask, and look at the clock."""
