#!/usr/bin/env bash
# Conversations that are too long, filtered by len(tokenizer.apply_chat_template(messages)), as for transformers 4.
#
# One would guess: the length is the number of tokens, as the call tokenizes unless told otherwise.
# What happens: transformers 5 returns a dictionary with input_ids and attention_mask, and the length of that is 2, however
# long the conversation is. So a filter by length keeps all, a sum of lengths counts two for each row, and a maximum is 2;
# none of them fails. With return_dict=False the length is that of the tokens.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet transformers==5.23.0 jinja2==3.1.6
"$place/venv/bin/python" - <<'PYTHON'
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

backend = Tokenizer(models.WordLevel({"<unk>": 0, "word": 1}, unk_token="<unk>"))
backend.pre_tokenizer = pre_tokenizers.Whitespace()
tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>")
tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }} {% endfor %}"
talks = [[{"role": "user", "content": "word " * n}] for n in (10, 1000, 100_000)]
lengths = [len(tokenizer.apply_chat_template(talk)) for talk in talks]
tokens = [len(tokenizer.apply_chat_template(talk, return_dict=False)) for talk in talks]
kept = [talk for talk in talks if len(tokenizer.apply_chat_template(talk)) <= 2048]
print(f"transformers {transformers.__version__}: len() gives {lengths} for {tokens} tokens")
print(f"of {len(talks)} conversations, {len(kept)} pass as no longer than 2048")
assert lengths == [2, 2, 2] and tokens == [10, 1000, 100_000] and len(kept) == 3, "the behaviour has changed"
PYTHON
