"""trl's run of GRPO: its GRPOTrainer with a LoRA adapter of peft, answers of one length by transformers' generate."""

import json
from typing import Any

from datasets import Dataset
from preferences_parts.pairs import GROUP, NEW_TOKENS, PROMPTS, Pairs, score
from preferences_parts.trl_dpo import Recording, adapter, settings
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports] measured where it is installed


def run(material: Pairs) -> None:
    """Train over the prompts once; all answers of a step are drawn at once, whatever is trained at once."""
    theirs = material.model.theirs
    tokenizer = AutoTokenizer.from_pretrained(theirs)
    model = AutoModelForCausalLM.from_pretrained(theirs, attn_implementation="sdpa", dtype="float32")
    arguments = GRPOConfig(
        loss_type="dr_grpo",
        scale_rewards="none",
        beta=0.0,
        num_generations=GROUP,
        max_completion_length=NEW_TOKENS,
        generation_kwargs={"min_new_tokens": NEW_TOKENS},
        gradient_accumulation_steps=PROMPTS * GROUP // material.trl_batch,
        **settings(material),
    )

    def graded(completions: list[str], **more: Any) -> list[float]:
        return [score(text) for text in completions]

    data = Dataset.from_list(
        [{"prompt": row["prompt"]} for row in json.loads(material.path.read_text(encoding="utf-8"))]
    )
    trainer = GRPOTrainer(
        model, graded, args=arguments, train_dataset=data, processing_class=tokenizer, peft_config=adapter()
    )
    recording = Recording(lambda inputs: len(inputs["completion_ids"]))
    recording.around(trainer)
    trainer.train()
    recording.tally.tell()
