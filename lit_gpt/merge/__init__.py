"""Merges LoRA runs into checkpoints (`write`), with a record of them (`record`) and a comparison (`compare`)."""
