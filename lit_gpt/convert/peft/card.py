"""The README.md of an adapter's folder, as the hub's pages show it."""

from collections.abc import Mapping
from typing import Any

from lit_gpt.config import Config


def model_card(config: Config, settings: Mapping[str, Any], prompt: str | None) -> str:
    """Return the model card of an adapter.

    Args:
        settings: adapter_config.json.
        prompt: the prompt that asks {prompt}; None is the chat template of the tokenizer.
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
    asked = "It was trained in the chat template of its tokenizer."
    if prompt is not None:
        asked = f"It was trained on prompts of this form:\n\n````text\n{prompt}\n````"
    return f"""---
{chr(10).join(header)}
---

# {kind} adapter of {config.name}

Rank {settings["r"]}, alpha {settings["lora_alpha"]}, on {targets}.

{asked}

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

adapter = "."  # this folder, or its id on the hub
model = AutoModelForCausalLM.from_pretrained("{repo or "BASE"}")
model = PeftModel.from_pretrained(model, adapter)
tokenizer = AutoTokenizer.from_pretrained(adapter)
```
"""
