"""Draws tokens from logits, each row by its own settings and seed."""
