#!/usr/bin/env bash
# What trl's training templates mark as the assistant's, in two conversations of one question and one answer.
#
# One would guess that a template with {% generation %} marks what the model has to write: what follows the text that
# asks for an answer (add_generation_prompt=True). trl 1.16.0's template for Llama 3 does. Others mark tokens, too, that the
# text which asks has given already: the line break after the role (Qwen 2.5), the role itself (DeepSeek V3, R1-Distill and
# gpt-oss, there with <|start|>). For the DeepSeeks that text goes on with "<think>\n", which the marked text lacks:
# what is trained does not begin where generation does.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip="$work/venv/bin/pip"
"$pip" install -q --disable-pip-version-check "transformers==5.23.0" "tokenizers>=0.22" "jinja2==3.1.6"
"$pip" install -q --disable-pip-version-check --no-deps "trl==1.16.0"
"$work/venv/bin/python" - <<'PY'
import importlib.util
from importlib.metadata import version
from pathlib import Path

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

folder = Path(importlib.util.find_spec("trl").submodule_search_locations[0]) / "chat_templates"
special = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜User｜>", "<｜Assistant｜>", "<|im_start|>", "<|im_end|>"]
special += ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
special += ["<|start|>", "<|message|>", "<|channel|>", "<|end|>", "<|return|>"]
ends = {"llama3": ("<|begin_of_text|>", "<|eot_id|>"), "qwen2_5": ("<|im_start|>", "<|im_end|>")}
ends |= dict.fromkeys(("deepseekv3", "deepseek_r1_distill"), (special[0], special[1]))
ends |= {"gptoss": ("<|start|>", "<|return|>")}
alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
backend = Tokenizer(models.BPE(vocab={c: i for i, c in enumerate(alphabet)}, merges=[]))
backend.pre_tokenizer, backend.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
backend.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in special])
talk = [{"role": "user", "content": "Which river?"}, {"role": "assistant", "content": "The Po."}]

print("trl", version("trl"), "transformers", version("transformers"))
marked, asked = {}, {}
for name, (bos, eos) in ends.items():
    template = (folder / f"{name}_training.jinja").read_text(encoding="utf-8")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, bos_token=bos, eos_token=eos, chat_template=template)
    asked[name] = tokenizer.apply_chat_template(talk[:1], tokenize=False, add_generation_prompt=True)
    out = tokenizer.apply_chat_template(talk, return_dict=True, return_assistant_tokens_mask=True)
    ids = [i for i, mine in zip(out["input_ids"], out["assistant_masks"]) if mine]
    marked[name] = tokenizer.decode(ids, skip_special_tokens=False)
    print(f"{name}: the text that asks ends with {asked[name][-30:]!r}; marked is {marked[name]!r}")

assert marked["llama3"] == "The Po.<|eot_id|>", marked
assert asked["qwen2_5"].endswith("assistant\n") and marked["qwen2_5"] == "\nThe Po.<|im_end|>\n", marked
for name in ("deepseekv3", "deepseek_r1_distill"):
    assert asked[name].endswith("<｜Assistant｜><think>\n"), asked
    assert marked[name] == "<｜Assistant｜>The Po.<｜end▁of▁sentence｜>", marked
assert asked["gptoss"].endswith("<|start|>assistant") and marked["gptoss"].startswith("<|start|>assistant<|channel|>"), marked
print("as described")
PY
