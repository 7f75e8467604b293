"""Triton kernels of decoding on a GPU."""
