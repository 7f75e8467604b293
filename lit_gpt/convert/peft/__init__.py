"""Converts LoRA weights between our runs and PEFT's adapters, by the weights table of an architecture.

In this folder "ours" are modules and parameters of our model and run; "theirs" are those of the Hugging Face model
that PEFT adapts.

One of their modules may hold several of ours (GPT-NeoX has one for queries, keys and values). Its A then stacks the A
of each piece, and its B has a block of columns for each piece, zero in the rows of the others: its rank is the sum of
the pieces' ranks.

What PEFT trains besides updates (embeddings, head, norms, biases, rows of tokens) becomes parameters with new values,
which a run of ours stores whole.
"""

from lit_gpt.convert.peft.card import model_card
from lit_gpt.convert.peft.reading import from_peft
from lit_gpt.convert.peft.writing import to_peft

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

__all__ = ["CONFIG", "PICKLED", "WEIGHTS", "from_peft", "model_card", "to_peft"]
