#!/usr/bin/env bash
# trl's DPOTrainer, given a model into which an adapter of supervised finetuning has just been merged, and no ref_model.
#
# One would guess that the reference is a copy of the model it is given, as it is before the first step: all rewards are 0
# then, and the first loss is log 2 = 0.693.
# What happens: the reference is loaded from the path that the model's configuration remembers, which is that of the base.
# The policy is held to a model without the supervised finetuning, from the first step on, and nothing says so. The same
# weights, saved and loaded before, are compared with themselves.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/pip" install --quiet torch==2.13.0
"$work/venv/bin/pip" install --quiet trl==1.16.0 transformers==5.23.0 peft==0.21.0 accelerate==1.15.0 datasets==5.2.0
cd "$work"
HF_HOME="$work/home" HF_HUB_OFFLINE=1 "$work/venv/bin/python" - 2>log <<'PYTHON' || { tail -20 log; exit 1; }
import math

import torch
import transformers
import trl
from datasets import Dataset
from peft import LoraConfig, PeftModel, get_peft_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

words = ["<unk>", "</s>", *(f"w{i}" for i in range(62))]
backend = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", pad_token="</s>")
torch.manual_seed(0)
sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4}
base = LlamaForCausalLM(LlamaConfig(vocab_size=64, initializer_range=0.3, bos_token_id=None, eos_token_id=1, **sizes))
base.save_pretrained("base")
get_peft_model(base, LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)).save_pretrained("sft")
rows = [{"prompt": f"w{i}", "chosen": f" w{i + 3} w4", "rejected": f" w{i + 7} w9"} for i in range(4)]


def first_loss(policy):
    settings = {"max_steps": 1, "per_device_train_batch_size": 4, "logging_steps": 1, "report_to": [], "bf16": False}
    args = trl.DPOConfig("out", use_cpu=True, disable_tqdm=True, save_strategy="no", **settings)
    trainer = trl.DPOTrainer(policy, args=args, train_dataset=Dataset.from_list(rows), processing_class=tokenizer)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return trainer.state.log_history[0]["loss"]


merged = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained("base"), "sft").merge_and_unload()
merged.save_pretrained("merged")
in_memory = first_loss(merged.requires_grad_(True))
from_disk = first_loss(AutoModelForCausalLM.from_pretrained("merged"))
print(f"trl {trl.__version__}, transformers {transformers.__version__}: the first loss is {in_memory:.4f} for the merged model")
print(f"as it is in memory, and {from_disk:.4f} for the same weights saved and loaded; log 2 = {math.log(2):.4f}")
assert abs(from_disk - math.log(2)) < 1e-4 and abs(in_memory - math.log(2)) > 1e-3, "the behaviour has changed"
PYTHON
