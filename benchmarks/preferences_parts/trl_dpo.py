"""trl's run: its DPOTrainer with a LoRA adapter of peft, whose reference is the model with the adapter off."""

import json
from collections.abc import Callable
from typing import Any

from datasets import Dataset
from peft import LoraConfig
from preferences_parts.pairs import ALPHA, BETA, RANK, RATE, SEED, STEP, Pairs
from preferences_parts.tally import Tally
from transformers import AutoModelForCausalLM, AutoTokenizer, TrainerCallback
from trl import DPOConfig, DPOTrainer  # pyright: ignore[reportMissingImports] measured where it is installed


class Recording(TrainerCallback):
    """Adds up the micro-batches of each step.

    Args:
        counted: number of pairs or answers in a micro-batch.
    """

    def __init__(self, counted: Callable[[Any], int]) -> None:
        self.counted = counted
        self.tally, self.n, self.loss = Tally(), 0, 0.0

    def around(self, trainer: Any) -> None:
        """Take the trainer's loss in between."""
        compute_loss = trainer.compute_loss

        def computed(model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            found = compute_loss(model, inputs, *args, **kwargs)
            loss, n = found[0] if isinstance(found, tuple) else found, self.counted(inputs)
            self.n, self.loss = self.n + n, self.loss + float(loss.detach()) * n
            return found

        trainer.compute_loss = computed
        trainer.add_callback(self)

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        self.tally.add(self.n, self.loss)
        self.n, self.loss = 0, 0.0


def settings(material: Pairs) -> dict[str, Any]:
    """What every trainer is told alike."""
    return {
        "output_dir": str(material.folder / "trainer"),
        "num_train_epochs": 1,
        "learning_rate": RATE,
        "lr_scheduler_type": "constant",
        "seed": SEED,
        "per_device_train_batch_size": material.trl_batch,
        "gradient_checkpointing": False,
        "bf16": False,
        "use_cpu": True,
        "save_strategy": "no",
        "report_to": "none",
        "logging_steps": 1,
        "disable_tqdm": True,
    }


def adapter() -> LoraConfig:
    """The LoRA of every trainer."""
    targets = ["q_proj", "k_proj", "v_proj", "o_proj"]
    return LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=targets, task_type="CAUSAL_LM")


def run(material: Pairs) -> None:
    """Train over the pairs once."""
    theirs = material.model.theirs
    tokenizer = AutoTokenizer.from_pretrained(theirs)
    model = AutoModelForCausalLM.from_pretrained(theirs, attn_implementation="sdpa", dtype="float32")
    arguments = DPOConfig(
        beta=BETA, gradient_accumulation_steps=STEP // material.trl_batch, max_length=None, **settings(material)
    )
    data = Dataset.from_list(json.loads(material.path.read_text(encoding="utf-8")))
    trainer = DPOTrainer(model, args=arguments, train_dataset=data, processing_class=tokenizer, peft_config=adapter())
    recording = Recording(lambda inputs: len(inputs["input_ids"]) // 2)
    recording.around(trainer)
    trainer.train()
    recording.tally.tell()
