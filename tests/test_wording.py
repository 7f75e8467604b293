"""Data and runs keep what their prompt style wrote, and say so where it writes other texts now."""

import json

import pytest
from runs import run_of

from lit_gpt.checkpoints.runs import read_run, save_run
from lit_gpt.data.curate.mix.sources import Source, require_same
from lit_gpt.errors import UserError
from lit_gpt.merge.record import MERGED, trained_style
from lit_gpt.prompts import STYLES
from lit_gpt.prompts.wording import WORDING, reworded, say, wording


def meta_of(style, **more):
    return {"prompt_style": style, "tokenizer": "t"} | more


@pytest.mark.parametrize("style", STYLES)
def test_data_that_keeps_what_its_style_wrote_is_compared_with_what_it_writes(style):
    assert "Q1" in wording(style) and "A2" in wording(style)
    assert reworded(meta_of(style, **{WORDING: wording(style)})) is None
    said = reworded(meta_of(style, **{WORDING: "[INST] Q1 A1"}))
    assert f"the prompt style {style} now writes other texts than '[INST] Q1 A1'" in said


def test_data_from_before_that_was_kept_is_known_by_its_style():
    """Whose texts are others since then, or are not."""
    for style in ("llama2", "tinyllama", "gemma", "chatml", "codellama"):
        assert "wrote other texts in the version that prepared the data" in reworded(meta_of(style))
    for style in ("alpaca", "plain", "chat_template", 'chat_template {"enable_thinking": false}'):
        assert reworded(meta_of(style)) is None
    assert reworded({}) is None  # of an adapter that came from PEFT


def test_a_run_says_once_that_it_will_be_asked_otherwise(tmp_path, capsys):
    say.cache_clear()
    run = run_of("lora")
    save_run(run, tmp_path)
    read_run(tmp_path)
    assert capsys.readouterr().err == ""
    run.data.update(meta_of("llama2"))
    save_run(run, tmp_path)
    read_run(tmp_path)
    read_run(tmp_path)
    err = capsys.readouterr().err
    assert err.count("note: the prompt style llama2 wrote other texts") == err.count("\n") == 1


def test_a_merged_checkpoint_says_so_too(tmp_path, capsys):
    say.cache_clear()
    (tmp_path / MERGED).write_text(json.dumps({"prompt_style": "llama2", "runs": [{"data": meta_of("llama2")}]}))
    assert trained_style(tmp_path) == "llama2"
    assert "note: the prompt style llama2 wrote other texts" in capsys.readouterr().err


def test_sources_of_a_mixture_were_written_alike():
    """Data of an earlier version goes with that of this one where the style is what it was."""
    for style, alike in (("alpaca", True), ("llama2", False)):
        old, new = meta_of(style), meta_of(style, **{WORDING: wording(style)})
        sources = {"a": Source(None, None, None, old), "b": Source(None, None, None, json.loads(json.dumps(new)))}
        if alike:
            require_same(sources)
            continue
        with pytest.raises(UserError, match="in the version that prepared a than in that of b"):
            require_same(sources)
