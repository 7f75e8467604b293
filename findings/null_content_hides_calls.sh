#!/usr/bin/env bash
# A chat template in which an answer that only calls tools is recognised by its null content, as those of DeepSeek V3
# and R1 do (`message['content'] is none`), and a message as OpenAI's format has it: content null, beside tool_calls.
# One would guess that the template sees the null. transformers 5 drops keys whose value is None before it renders, so
# `is none` is false of what is then undefined, the branch is not taken, and the call is missing from the text without
# any error.
set -euo pipefail
place=$(mktemp -d)
trap 'rm -rf "$place"' EXIT
python3 -m venv "$place/venv"
"$place/venv/bin/pip" install --quiet transformers==5.23.0 jinja2==3.1.6
cat > "$place/show.py" <<'PYTHON'
import jinja2
import transformers
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from transformers import PreTrainedTokenizerFast

TEMPLATE = (
    "{% for m in messages %}{% if m['content'] is none %}[call {{ m['tool_calls'][0]['function']['name'] }}]"
    "{% else %}[{{ m['role'] }}: {{ m['content'] }}]{% endif %}{% endfor %}"
)
call = {"type": "function", "function": {"name": "lookup", "arguments": {"q": "tower"}}}
messages = [
    {"role": "user", "content": "How tall?"},
    {"role": "assistant", "content": None, "tool_calls": [call]},
]
tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(WordLevel({"a": 0, "<unk>": 1}, unk_token="<unk>")))
tokenizer.chat_template = TEMPLATE
plain = jinja2.Environment().from_string(TEMPLATE).render(messages=messages)
shown = tokenizer.apply_chat_template(messages, tokenize=False)
print("transformers", transformers.__version__)
print("the template by itself:     ", plain)
print("through apply_chat_template:", shown)
assert plain == "[user: How tall?][call lookup]"
assert shown == "[user: How tall?][assistant: ]", "the behaviour has changed"
PYTHON
"$place/venv/bin/python" "$place/show.py"
