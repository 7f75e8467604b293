"""Merged checkpoints: how a LoRA run becomes one (`write`), what its folder says of it (`record`), and by how much it
differs from the run (`compare`)."""
