"""From other people's checkpoints to ours: names (`names`), configurations (`configs`), files (`readers`, `gguf`)."""
