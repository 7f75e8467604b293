"""Rows made from rows: options in another order, prompts as careless people write them."""

from lit_gpt.data.augment.options import shuffle_options
from lit_gpt.data.augment.perturb import PERTURBATIONS, perturb_prompt
from lit_gpt.data.augment.rows import augmented

__all__ = ["PERTURBATIONS", "augmented", "perturb_prompt", "shuffle_options"]
