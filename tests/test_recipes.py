"""The recipes are settings that finetune/lora.py takes, beside the flags of a user, and do what their names say."""

from importlib.util import module_from_spec, spec_from_file_location

import pytest
from conftest import ROOT

from lit_gpt.args import TrainArgs
from lit_gpt.cli import parse
from lit_gpt.training.length import SMALL_DATA, length_of, outlook

RECIPES = sorted((ROOT / "finetune/recipes").glob("*.yaml"))


def settings(*flags):
    """What finetune/lora.py makes of these flags."""
    spec = spec_from_file_location("finetune_lora", ROOT / "finetune/lora.py")
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return parse(module.main, [str(flag) for flag in flags])


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_goes_with_the_flags_of_a_user_who_has_the_last_word(path, tmp_path):
    plain = settings("--data_dir", tmp_path, "--checkpoint_dir", tmp_path)
    found = settings("--config", path, "--data_dir", tmp_path, "--checkpoint_dir", tmp_path, "--learning_rate", 1e-5)
    assert found["data_dir"] == found["checkpoint_dir"] == tmp_path
    assert found["train"].learning_rate == 1e-5 and found["lora"] != plain["lora"] and found["train"] != plain["train"]


def test_few_rows_get_steps_enough_by_the_recipe_that_is_named_where_they_do_not(tmp_path):
    where = ("--data_dir", tmp_path, "--checkpoint_dir", tmp_path)
    *_, said = outlook(0, length_of(settings(*where, "--epochs", 3)["train"], 300))
    assert said.startswith("8 optimizer steps: too few to learn much; try --batch_size 8") and SMALL_DATA in said
    found = settings("--config", ROOT / SMALL_DATA, *where)
    assert length_of(found["train"], 300).n_steps == 113 and len(list(outlook(0, length_of(found["train"], 300)))) == 1
    lora = found["lora"]
    assert lora.lora_query and lora.lora_key and lora.lora_value and lora.lora_projection and lora.lora_mlp
    assert TrainArgs().batch_size == 128  # the defaults stay those of the starter guide
