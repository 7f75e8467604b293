"""Whatever a file of names with values holds, it is read or refused in one line, in seconds and in little memory."""

import json
from pathlib import Path

import pytest
from campaigns import campaign_of
from damage import outcome_of
from record_readers import (
    Kind,
    alone,
    cases_of,
    config_file,
    hugging_face,
    kinds_of_checkpoint,
    kinds_of_run,
    kinds_of_training,
)

from lit_gpt.args.folders import CONFIG, LITGPT_CONFIG, RUN
from lit_gpt.data.store import META
from lit_gpt.merge.record import MERGED
from lit_gpt.training.run.monitor import METRICS
from lit_gpt.training.run.progress import RECORD

OWN = {
    CONFIG: 150, LITGPT_CONFIG: 100, RUN: 100, "plan.json": 100, METRICS: 20, MERGED: 100, "adapter_config.json": 120,
    META: 40, RECORD: 120, "tokenizer_config.json": 120, "special_tokens_map.json": 60, "generation_config.json": 80,
    "added_tokens.json": 60, "flags.yaml": 150,
}  # fmt: skip
"""Name of a file -> number of cases."""


@pytest.fixture(scope="module")
def kinds(tmp_path_factory) -> dict[str, Kind]:
    folder = tmp_path_factory.mktemp("kinds")
    found = kinds_of_checkpoint(folder)
    return (
        found
        | kinds_of_run(folder, folder / "base")
        | kinds_of_training(folder, folder / "base")
        | {"flags.yaml": config_file(folder)}
    )


@pytest.fixture(scope="module")
def from_hub(tmp_path_factory) -> dict[str, Kind]:
    return hugging_face(tmp_path_factory.mktemp("hub"))


def check(kind: Kind, n: int, place: Path) -> None:
    whole = kind.content
    kind.path.write_bytes(whole)
    outcome = outcome_of(alone(kind), len(whole))
    assert outcome.kind == "read", outcome
    found = campaign_of(cases_of(kind), place, len(whole), seconds=0, least=n)
    kind.path.write_bytes(whole)
    assert not found.faults, f"{found}, the first: {next(iter(found.faults.items()))}"
    assert found.n_cases == n
    if kind.value is not None:  # of other files, damaged lines are left out
        assert found.n_refused, "nothing was damaged"


@pytest.mark.parametrize("name", OWN)
def test_a_damaged_file_of_a_checkpoint_a_run_or_a_data_set_is_named(kinds, name, tmp_path):
    check(kinds[name], OWN[name], tmp_path)


def test_a_damaged_file_of_the_hub_is_named_in_every_family(from_hub, tmp_path):
    for name, kind in from_hub.items():
        check(kind, 100 if "index" in name else 8, tmp_path)


def test_every_kind_of_file_has_its_cases(kinds):
    assert kinds.keys() == OWN.keys()
    assert json.loads(kinds[CONFIG].content)["format_version"] == 1
