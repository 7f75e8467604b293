"""Submissions to the NeurIPS 2023 LLM Efficiency Challenge: packs a run, and checks a package as the organizers do."""
