#!/usr/bin/env bash
# eval_loss of transformers' Trainer for one model and one set of texts of different lengths, with batches of 1 and of 8.
#
# One would guess that it is the loss per token, as the loss of training is since it is divided by the tokens of a step, and
# that the size of batches is a matter of speed.
# What happens: the loss of each batch is its mean over tokens, and eval_loss the mean over texts of the means of their
# batches. With batches of 1 a short answer counts as much as a long one, with batches of 8 each token of the batch the
# same. So eval_loss, its exponential as perplexity, and which checkpoint is best, hang on per_device_eval_batch_size.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet transformers==5.23.0 accelerate==1.15.0
cd "$work"
HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2>/dev/null <<'PYTHON'
import torch
import transformers
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
model = LlamaForCausalLM(LlamaConfig(vocab_size=320, initializer_range=0.3, **sizes)).eval()
texts = [torch.randint(3, 320, (n,)) for n in (5, 61) * 4]
for text in texts[::2]:
    text[1:] = text[1]  # the short texts repeat a token, so that their loss is another


def batch(rows):
    ids = torch.nn.utils.rnn.pad_sequence([row["input_ids"] for row in rows], batch_first=True, padding_value=0)
    return {"input_ids": ids, "attention_mask": (ids != 0).long(), "labels": ids.masked_fill(ids == 0, -100)}


with torch.no_grad():
    losses = [model(t[None], labels=t[None]).loss * (len(t) - 1) for t in texts]
per_token = float(sum(losses) / sum(len(t) - 1 for t in texts))
print(f"transformers {transformers.__version__}: the loss per token is {per_token:.4f}")
found = {}
for size in (1, 2, 8):
    args = TrainingArguments("out", per_device_eval_batch_size=size, report_to=[], use_cpu=True, disable_tqdm=True)
    rows = [{"input_ids": t} for t in sorted(texts, key=len)]
    trainer = Trainer(model, args, data_collator=batch, eval_dataset=rows)
    trainer.remove_callback(transformers.PrinterCallback)
    found[size] = trainer.evaluate()["eval_loss"]
    print(f"per_device_eval_batch_size={size}: eval_loss {found[size]:.4f}")
assert abs(found[8] - per_token) < 1e-3 and abs(found[1] - per_token) > 0.05, "the behaviour has changed"
PYTHON
