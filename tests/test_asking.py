"""A trained model is asked as it was trained: system text, earlier turns, the token that ends an answer."""

import io
import json
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest
from conftest import ROOT
from styled_conversations import KINDS, conversations, folder_of, messages

from lit_gpt.args import AskArgs, PrepareArgs
from lit_gpt.cli import parse
from lit_gpt.data.prepare.account import Counts
from lit_gpt.data.prepare.rows import Row
from lit_gpt.data.prepare.tokens import Encoder
from lit_gpt.errors import UserError
from lit_gpt.generation.asking import QUESTION, ask
from lit_gpt.prompts import STYLES, Turn, make_prompt, open_style
from lit_gpt.tokenizer import Tokenizer


@pytest.mark.parametrize("kind", KINDS)
def test_generation_begins_with_the_ids_of_training(kind, tmp_path):
    """The last question of a conversation in a file, or as a prompt after the turns in it, with a system text too."""
    tokenizer, path = Tokenizer(folder_of(kind, tmp_path)), tmp_path / "turns.json"
    for style in STYLES:
        encoder = Encoder(tokenizer, PrepareArgs(prompt_style=style), 10**6)
        for turns in conversations():
            if turns[-1].role != "user":
                continue
            ((trained, _),) = encoder.encode([Row((*turns, Turn("assistant", "A")))], Counts())
            path.write_text(json.dumps(messages(turns)))
            asked = [ask(AskArgs(conversation=path), style, tmp_path, tokenizer)]
            said = turns[1:] if turns[0].role == "system" else turns
            system = turns[0].text if turns[0].role == "system" else ""
            earlier = None
            if said[:-1]:
                earlier = path
                path.write_text(json.dumps({"messages": messages(said[:-1])}))
            args = AskArgs(said[-1].text, system=system, conversation=earlier)
            asked.append(ask(args, style, tmp_path, tokenizer))
            for found in asked:
                answer = trained[len(found.ids) :]
                assert trained[: len(found.ids)] == found.ids
                assert tokenizer.decode(answer) == STYLES[style].answer("A") and answer[-1] in found.stop_ids


def test_the_question_is_that_of_the_flags_or_of_standard_input(tmp_path, monkeypatch):
    tokenizer = Tokenizer(folder_of("llama", tmp_path))

    def text(style="alpaca", **flags):
        return ask(AskArgs(**flags), style, tmp_path, tokenizer).text

    assert text() == make_prompt("alpaca", QUESTION) and text(prompt="Q", input="I") == make_prompt("alpaca", "Q", "I")
    assert text(prompt="", style="plain") == ""
    assert ask(AskArgs(), "alpaca", tmp_path, tokenizer, end_ids=[7]).stop_ids == tokenizer.stop_ids | {7}
    monkeypatch.setattr("sys.stdin", io.StringIO("two\nlines\n"))
    assert text(prompt="-") == make_prompt("alpaca", "two\nlines")
    monkeypatch.setattr("sys.stdin", io.StringIO("\n"))
    with pytest.raises(UserError, match="nothing in it"):
        text(prompt="-")
    system = [Turn("system", "S"), Turn("user", "Q")]
    assert text(prompt="Q", system="S") == open_style("alpaca").exchanges(system)[0].prompt


@pytest.mark.parametrize(
    "content, flags, message",
    [
        ("{", {}, "is no JSON file"),
        ([], {}, "turns.json"),
        ([{"role": "narrator", "content": "a"}], {}, "narrator"),
        ([{"role": "system", "content": "a"}, {"role": "user", "content": "b"}], {"system": "s"}, "--system, and"),
        ([{"role": "user", "content": "b"}], {"prompt": "p"}, "--prompt, and .* ends with what is asked"),
        ([{"role": "user", "content": "b"}], {"input": "p"}, "--input, and .* ends with what is asked"),
        ([{"role": "user", "content": "b"}, {"role": "assistant", "content": "b"}], {}, "pass --prompt"),
        ({"question": "b"}, {}, "turns.json"),
    ],
)  # fmt: skip
def test_a_conversation_that_is_none_is_named(content, flags, message, tmp_path):
    path = tmp_path / "turns.json"
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(UserError, match=message) as e:
        ask(AskArgs(conversation=path, **flags), "alpaca", tmp_path, Tokenizer(folder_of("llama", tmp_path)))
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("script", ["base", "lora", "adapter", "adapter_v2", "full"])
def test_every_generate_script_asks_so(script):
    spec = spec_from_file_location(script, ROOT / "generate" / f"{script}.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    flags = ["--prompt", "-", "--system", "S", "--conversation", "turns.json", "--input", "[1, 2]"]
    assert parse(module.main, flags)["asking"] == AskArgs("-", "[1, 2]", "S", Path("turns.json"))
