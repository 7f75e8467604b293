"""Merged checkpoints: how a LoRA run becomes one (`write`), and by how much it differs from the run (`compare`)."""
