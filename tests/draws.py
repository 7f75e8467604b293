"""What a model draws: token by token with the model as it is, and by the decoder that is to be fast."""

import torch

from lit_gpt.generation.lockstep.batch import draw
from lit_gpt.generation.lockstep.decode import Decoder
from lit_gpt.generation.sampling.sampler import sample
from lit_gpt.model import KVCache


@torch.no_grad()
def plainly(model, prompts, n, temperature=0.0, top_k=None):
    """Returns columns of tokens, drawn with one cache for everything and the model as it is."""
    rows, lengths = torch.arange(len(prompts)), torch.tensor([len(p) for p in prompts])
    width = int(lengths.max())
    cache = KVCache(model, len(prompts), width + n)
    ids = torch.tensor([[*p, *[0] * (width - len(p))] for p in prompts])
    logits, columns = model(ids, torch.arange(width), cache)[rows, lengths - 1], []
    for i in range(n):
        columns.append(sample(logits, temperature, top_k))
        logits = model(columns[-1][:, None], (lengths + i)[:, None], cache)[:, 0]
    return [c.tolist() for c in columns]


@torch.inference_mode()
def fast(model, prompts, n, temperature=0.0, top_k=None, stop_ids=(), way="eager"):
    """Returns what `generate_batch` draws with blocks that torch.compile traces and `eager` then runs as they are."""
    length = min(max(map(len, prompts)) + n, model.config.block_size)
    decoder = Decoder(model, len(prompts), length, way)
    return list(draw(decoder, prompts, n, temperature, top_k, stop_ids))
