"""Decoding on a CPU: packed weights and compiled blocks."""
