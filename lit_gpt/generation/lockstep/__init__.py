"""Decoding of a fixed batch in lockstep on tensors that never move: compiled, or captured as CUDA graphs."""
