#!/usr/bin/env bash
# A tokenizer of transformers that was called with truncation=True, max_length=... for training data, and saved then.
#
# One would guess that truncation and padding are arguments of that call, and the files those of the tokenizer as it was.
# What happens: transformers sets them in the backend and leaves them there, and save_pretrained writes them to
# tokenizer.json. transformers itself sets them anew with each call and shows nothing of it. The library tokenizers, with
# which servers and others read the same file, goes on cutting every text at the length of training, prompts included, and
# padding short ones, without an error.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet transformers==5.23.0 tokenizers==0.23.3
cd "$place"
HF_HUB_OFFLINE=1 "$place/venv/bin/python" - <<'PYTHON'
import tokenizers
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

backend = Tokenizer(models.WordLevel({"<pad>": 0, "<unk>": 1, "word": 2}, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", pad_token="<pad>").save_pretrained("before")
tokenizer = AutoTokenizer.from_pretrained("before")
tokenizer("word " * 100, truncation=True, max_length=16, padding="max_length")
tokenizer.save_pretrained("after")
print("transformers", transformers.__version__, "tokenizers", tokenizers.__version__)
found = {}
for folder in ("before", "after"):
    reader = Tokenizer.from_file(f"{folder}/tokenizer.json")
    theirs = AutoTokenizer.from_pretrained(folder)
    found[folder] = [len(reader.encode("word " * n).ids) for n in (100, 3)]
    shown = [len(theirs("word " * n)["input_ids"]) for n in (100, 3)]
    print(f"saved {folder} the call: texts of 100 and 3 tokens have {found[folder]} for tokenizers, {shown} for transformers")
    assert shown == [100, 3], "the behaviour has changed"
assert found == {"before": [100, 3], "after": [16, 16]}, "the behaviour has changed"
PYTHON
