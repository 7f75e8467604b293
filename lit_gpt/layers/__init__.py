"""The layers of a decoder: linear layers, MLPs, norms, rotary embeddings, attention, quantized weights."""
