"""What the serving benchmark needs besides a real model: one with random weights, and questions, from the checkout."""

import json
import random
import re
from pathlib import Path
from typing import Any

from train_parts.material import Material, script

_ROOT = Path(__file__).parent.parent.parent
_VOCABULARY = 49_152
_TEMPLATE = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
_MOST_ANSWERS = 7


def own_text() -> str:
    """Returns the prose of the checkout's pages."""
    pages = sorted([*_ROOT.glob("*.md"), *(_ROOT / "docs").glob("*.md"), *(_ROOT / "benchmarks").glob("*.md")])
    return "\n".join(re.sub(r"(?s)```.*?```", "", page.read_text(encoding="utf-8")) for page in pages)


def own_questions(n: int = 500) -> list[dict]:
    """Returns questions with answers in the form and length of TruthfulQA's rows, of words of the checkout's pages."""
    draw, words = random.Random(0), re.findall(r"[A-Za-z']+", own_text())

    def some(least: int, most: int) -> str:
        length = draw.randint(least, most)
        at = draw.randrange(len(words) - length)
        return " ".join(words[at : at + length])

    return [
        {"question": some(6, 16) + "?", "mc1_targets": {"choices": choices, "labels": [1] + [0] * (len(choices) - 1)}}
        for choices in ([some(5, 15) for _ in range(draw.randint(2, _MOST_ANSWERS))] for _ in range(n))
    ]


def make_random(material: Material) -> None:
    """Makes a model with random weights and SmolLM2-135M's shape, where there is none yet."""
    if (material.ours / "lit_config.json").is_file():
        return
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    shape: dict[str, Any] = {
        "hidden_size": 576,
        "intermediate_size": 1_536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
    }
    config = LlamaConfig(
        **shape, num_key_value_heads=3, vocab_size=_VOCABULARY, max_position_embeddings=8_192,
        rope_parameters={"rope_type": "default", "rope_theta": 100_000.0},
        tie_word_embeddings=True, bos_token_id=1, eos_token_id=2, initializer_range=0.05,
    )  # fmt: skip
    torch.manual_seed(0)
    material.ours.mkdir(parents=True, exist_ok=True)
    _write_tokenizer(material.ours)
    model: Any = LlamaForCausalLM(config)
    model.to(torch.bfloat16).save_pretrained(material.ours)
    script("convert_hf_checkpoint", checkpoint_dir=material.ours)


def _write_tokenizer(folder: Path) -> None:
    """Writes a byte-level tokenizer, learned of the checkout's pages and filled up with words that no text has."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    special: list[str | AddedToken] = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=8_192, special_tokens=special, initial_alphabet=alphabet)
    backend.train_from_iterator(own_text().splitlines(), trainer)
    learned = json.loads(backend.to_str())
    vocabulary = learned["model"]["vocab"]
    vocabulary |= {f"Ġ{i}": i for i in range(len(vocabulary), _VOCABULARY)}
    (folder / "tokenizer.json").write_text(json.dumps(learned), encoding="utf-8")
    config = {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}
    config |= {"add_bos_token": False, "chat_template": _TEMPLATE}
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
