"""Tasks of lm-eval get the sampling that their `generation_kwargs` ask for, or a refusal by name."""

import pytest
from lm_eval_reference import ours, requests, theirs

from lit_gpt.errors import UserError
from lit_gpt.evaluation.drawing import generation_settings
from lit_gpt.generation.request import Sampling


def settings(**given):
    return generation_settings({"until": ["\n", ""], "max_gen_toks": 7, **given}, 256)


def test_settings_are_those_of_the_task():
    found = settings(do_sample=True, temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.2)
    assert found.sampling == Sampling(temperature=0.7, top_p=0.9, top_k=5, min_p=0.1, repetition_penalty=1.2)
    assert found.until == ("\n",) and (found.max_new_tokens, found.min_new_tokens) == (7, 0)
    assert settings(do_sample=True, temperature=0.7, min_new_tokens=3).min_new_tokens == 3
    # what does not matter to the most likely token is left out, and what does is not
    greedy = settings(do_sample=False, temperature=0.7, top_p=0.0, top_k=0, frequency_penalty=0.5, num_beams=1)
    assert greedy.sampling == Sampling(temperature=0, frequency_penalty=0.5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"num_beams": 4}, "generation with num_beams=4, which this toolkit does not have"),
        ({"typical_p": 0.2}, "generation with typical_p=0.2, which this toolkit does not have"),
        ({"num_return_sequences": 2}, "num_return_sequences=2, which"),
        (
            {"do_sample": True, "temperature": 1, "top_p": 2.0},
            "a task's generation_kwargs: top_p 2.0 must be at most 1",
        ),
    ],
)
def test_what_is_not_there_is_refused_by_name(given, message):
    with pytest.raises(UserError) as e:
        settings(**given)
    assert message in str(e.value)


def test_penalized_texts_equal_those_of_lm_evals_hf_model(checkpoint):
    asked = {"until": [], "max_gen_toks": 12, "do_sample": False}
    plain, penalized = (
        requests("generate_until", [(c, asked | more) for c in ("the king and", "a ring", "the thing")])
        for more in ({}, {"repetition_penalty": 1.8})
    )
    lm, reference = ours(checkpoint, 2), theirs(checkpoint, 1)
    expected = reference.generate_until(penalized, disable_tqdm=True)
    assert expected != reference.generate_until(plain, disable_tqdm=True)
    assert lm.generate_until(penalized, disable_tqdm=True) == expected


@pytest.mark.usefixtures("unpacked")
def test_a_model_that_fails_ends_the_evaluation_with_its_error(checkpoint):
    lm = ours(checkpoint, 2)

    def fail(*unused):
        raise RuntimeError("the device is gone")

    lm.model.lm_head.register_forward_hook(fail)
    asked = requests("generate_until", [("the king", {"until": [], "max_gen_toks": 3, "do_sample": False})] * 3)
    with pytest.raises(UserError, match="the device is gone"):
        lm.generate_until(asked, disable_tqdm=True)
