"""The formats of checkpoints/ and out/: base checkpoints (`base`, `layouts`) and finetuned runs (`runs`)."""
