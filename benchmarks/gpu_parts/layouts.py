"""How transformers is given documents, padded or packed, and its training step."""

import random
from collections.abc import Callable, Sequence

import numpy as np
import torch
from gpu_parts.documents import IGNORE, Document
from torch import Tensor, nn

Rows = dict[str, Tensor]
"""What a forward pass takes, (B, T) each."""


def padded(documents: Sequence[Document], size: int, device: torch.device) -> list[Rows]:
    """`size` documents a batch in random order, padded on the right to the longest of them."""
    order = random.Random(0).sample(list(documents), len(documents))
    return [rectangle(order[i : i + size], device) for i in range(0, len(order), size)]


def rectangle(documents: Sequence[Document], device: torch.device) -> Rows:
    shape = len(documents), max(len(ids) for ids, _ in documents)
    ids, labels, mask = np.zeros(shape, np.int64), np.full(shape, IGNORE, np.int64), np.zeros(shape, np.int64)
    for row, (document_ids, document_labels) in enumerate(documents):
        n = len(document_ids)
        ids[row, :n], labels[row, :n], mask[row, :n] = document_ids, document_labels, 1
    return on_device(device, input_ids=ids, labels=labels, attention_mask=mask)


def packed(documents: Sequence[Document], size: int, device: torch.device) -> list[Rows]:
    """One row a batch, documents end to end up to `size` tokens; positions begin anew with each."""
    groups, room = [[]], size
    for document in sorted(documents, key=lambda d: -len(d[0])):
        if len(document[0]) > room:
            groups.append([])
            room = size
        groups[-1].append(document)
        room -= len(document[0])
    return [end_to_end(group, device) for group in groups if group]


def end_to_end(documents: Sequence[Document], device: torch.device) -> Rows:
    labels = [np.concatenate(([IGNORE], labels[1:])) for _, labels in documents]
    return on_device(
        device,
        input_ids=np.concatenate([ids for ids, _ in documents])[None],
        labels=np.concatenate(labels)[None],
        position_ids=np.concatenate([np.arange(len(ids)) for ids, _ in documents])[None],
    )


def on_device(device: torch.device, **arrays: np.ndarray) -> Rows:
    return {name: torch.from_numpy(x.astype(np.int64)).to(device) for name, x in arrays.items()}


def step_runner(model: nn.Module) -> Callable[[Sequence[Rows]], None]:
    """One optimizer step over micro-batches when called."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, lr=3e-4, weight_decay=0.01)

    def step(batches: Sequence[Rows]) -> None:
        for rows in batches:
            (model(**rows).loss / len(batches)).backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step
