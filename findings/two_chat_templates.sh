#!/usr/bin/env bash
# A model folder that has both chat_template.jinja and a chat_template in tokenizer_config.json.
# One would guess that tools agree on which of the two is the model's. transformers takes the file; the vocabulary reader
# of the package gguf, with which llama.cpp's converter fills tokenizer.chat_template, takes the other one. So the same
# folder asks in one way in Python and in another as gguf, and neither says so.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet transformers==5.23.0 jinja2==3.1.6 gguf==0.19.0
"$place/venv/bin/python" - "$place" <<'PY'
import importlib.metadata
import json
import sys
from pathlib import Path

from gguf.vocab import SpecialVocab
from tokenizers import Tokenizer, models
from transformers import AutoTokenizer

folder = Path(sys.argv[1]) / "model"
folder.mkdir()
tokenizer = Tokenizer(models.BPE({"a": 0, "b": 1}, []))
tokenizer.add_special_tokens(["</s>"])
tokenizer.save(str(folder / "tokenizer.json"))
settings = {"tokenizer_class": "PreTrainedTokenizerFast", "eos_token": "</s>", "chat_template": "from the settings"}
(folder / "tokenizer_config.json").write_text(json.dumps(settings))
(folder / "chat_template.jinja").write_text("from the file")

asked = [{"role": "user", "content": "a"}]
shown = AutoTokenizer.from_pretrained(folder).apply_chat_template(asked, tokenize=False)
converted = SpecialVocab(folder).chat_template
for package in ("transformers", "gguf"):
    print(package, importlib.metadata.version(package))
print(f"transformers shows {shown!r}; gguf would carry {converted!r}")
sys.exit((shown, converted) != ("from the file", "from the settings"))
PY
