"""The layers that a decoder is made of: linear layers, MLPs, norms, rotary embeddings, attention, quantized weights."""
