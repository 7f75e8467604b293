"""LoRA weights between our runs and PEFT's adapters, both directions, by the weights table of an architecture.

A module of theirs may hold several of ours (GPT-NeoX has one for queries, keys and values). Its A then stacks those of
its pieces, and its B has a column block for each, zero in the rows of the others: the rank is the sum of theirs.

What PEFT trains besides updates (embeddings, head, norms, biases, rows of tokens) is a parameter with other values in
the end, and a run of ours has those as parameters of its own.
"""

from lit_gpt.convert.peft.card import model_card
from lit_gpt.convert.peft.reading import from_peft
from lit_gpt.convert.peft.writing import to_peft

CONFIG, WEIGHTS, PICKLED = "adapter_config.json", "adapter_model.safetensors", "adapter_model.bin"

__all__ = ["CONFIG", "PICKLED", "WEIGHTS", "from_peft", "model_card", "to_peft"]
