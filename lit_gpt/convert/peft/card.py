"""Writes the model card of an adapter, the README.md that the hub shows."""

from collections.abc import Mapping
from typing import Any

from lit_gpt.config import Config


def model_card(config: Config, settings: Mapping[str, Any], prompt: str | None, precision: str) -> str:
    """Returns the model card of an adapter.

    Args:
        settings: content of adapter_config.json.
        prompt: the text of a prompt around {prompt}; None if the tokenizer's chat template was used.
        precision: a sentence on the precision of the base's weights in training.
    """
    repo = config.hf_repo
    tags = ([f"base_model:adapter:{repo}"] if repo else []) + ["lora", "transformers"]
    header = [
        f"base_model: {repo}" if repo else "# base_model: the id of the model that this adapts",
        "library_name: peft",
        "pipeline_tag: text-generation",
        "# license: yours to choose, within that of the base model",
        "tags:",
        *(f"- {tag}" for tag in tags),
    ]
    kind = "DoRA" if settings["use_dora"] else "LoRA"
    targets = ", ".join(dict.fromkeys(name.rpartition(".")[2] for name in settings["target_modules"]))
    auto = "AutoModelForImageTextToText" if config.wrapper else "AutoModelForCausalLM"
    prompt_form = "It was trained in the chat template of its tokenizer."
    if prompt is not None:
        prompt_form = f"It was trained on prompts of this form:\n\n````text\n{prompt}\n````"
    return f"""---
{chr(10).join(header)}
---

# {kind} adapter of {config.name}

Rank {settings["r"]}, alpha {settings["lora_alpha"]}, on {targets}. {precision}

{prompt_form}

```python
from peft import PeftModel
from transformers import {auto}, AutoTokenizer

adapter = "."  # this folder, or its id on the hub
model = {auto}.from_pretrained("{repo or "BASE"}")
model = PeftModel.from_pretrained(model, adapter)
tokenizer = AutoTokenizer.from_pretrained(adapter)
```
"""
