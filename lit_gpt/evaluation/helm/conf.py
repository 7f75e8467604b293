"""HELM's list of what to run (`run_specs.conf`), and that of the challenge."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lit_gpt.errors import UserError
from lit_gpt.files import write_text

_MODEL = "neurips/local"
"""HELM's name of a model that is asked over HTTP."""
_BIG_BENCH = {
    "analytic_entailment": "",
    "causal_judgment": "",
    "emoji_movie": "",
    "empirical_judgments": "",
    "known_unknowns": "",
    "logical_deduction": "three_objects",
    "strange_stories": "multiple_choice",
    "snarks": "",
    "dark_humor_detection": "",
}
"""Tasks of BIG-bench in the challenge's sample, with their subtasks."""
_MMLU = (
    *("philosophy", "moral_disputes", "moral_scenarios"),
    *(f"high_school_{x}" for x in ("biology", "chemistry", "computer_science", "european_history", "geography")),
    *(f"high_school_{x}" for x in ("government_and_politics", "macroeconomics", "mathematics", "microeconomics")),
    *(f"high_school_{x}" for x in ("physics", "psychology", "statistics", "us_history", "world_history")),
)
"""Subjects of MMLU in the challenge's sample."""
_ENTRY = re.compile(r"""description["']?\s*[:=]\s*(?:"([^"\n]*)"|'([^'\n]*)')""")
_COMMENT = re.compile(r"""^\s*(?:#|//).*$""", re.MULTILINE)


@dataclass(frozen=True)
class Entry:
    """One thing to run: a scenario and its settings."""

    scenario: str
    settings: dict[str, str]

    @property
    def description(self) -> str:
        """The entry as HELM writes it."""
        return f"{self.scenario}:{','.join(f'{k}={v}' for k, v in self.settings.items())}"

    def number(self, key: str) -> int | None:
        """Returns a setting that is a number, None if it is not there; raises UserError if it is none."""
        value = self.settings.get(key)
        if value is not None and not value.isdecimal():
            raise UserError(f"{self.description}: {key} has to be a number here")
        return None if value is None else int(value)


def parsed(description: str) -> Entry:
    """Returns an entry; raises UserError if it is none."""
    scenario, _, rest = description.partition(":")
    parts = [part.partition("=") for part in rest.split(",") if part]
    if not scenario or any(not key or not equals for key, equals, _ in parts):
        raise UserError(f'{description!r} is no entry of HELM; one is "mmlu:subject=anatomy,model={_MODEL}"')
    return Entry(scenario, {key: value for key, _, value in parts})


def challenge() -> list[Entry]:
    """Returns what the challenge's sample configuration runs."""
    bench = (f"task={t},subtask={s},max_train_instances=3" for t, s in _BIG_BENCH.items())
    listed = [
        *(f"big_bench:model={_MODEL},{settings}" for settings in bench),
        *(f"mmlu:model={_MODEL},subject={subject},data_augmentation=canonical" for subject in _MMLU),
        f"truthful_qa:task=mc_single,model={_MODEL}",
        f"summarization_cnndm:model={_MODEL}",
        f"gsm:model={_MODEL}",
        f"bbq:subject=all,model={_MODEL}",
    ]
    return [parsed(description) for description in listed]


def write_conf(path: Path, entries: Sequence[Entry]) -> None:
    """Writes a list that `helm-run --conf-paths` takes."""
    lines = [f'  {{description: "{entry.description}", priority: 1}}' for entry in entries]
    write_text(path, "entries: [\n" + "\n".join(lines) + "\n]\n")


def read_conf(path: Path) -> list[Entry]:
    """Returns the entries of a list; raises UserError if it has none."""
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as e:
        raise UserError(f"--conf {path} cannot be read ({e})") from e
    found = [parsed(a or b) for a, b in _ENTRY.findall(_COMMENT.sub("", text))]
    if not found:
        raise UserError(f'--conf {path} has no entry such as {{description: "mmlu:subject=anatomy,model={_MODEL}"}}')
    return found
