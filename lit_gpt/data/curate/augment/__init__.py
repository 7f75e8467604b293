"""Augments rows: multiple-choice options in another order, prompts perturbed as careless people write them."""

from lit_gpt.data.curate.augment.options import shuffle_options
from lit_gpt.data.curate.augment.perturb import PERTURBATIONS, perturb_prompt
from lit_gpt.data.curate.augment.rows import augmented

__all__ = ["PERTURBATIONS", "augmented", "perturb_prompt", "shuffle_options"]
