"""Augments rows, deterministically by seed: what becomes of a row does not depend on the other rows."""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from random import Random

from lit_gpt.args.curation import AugmentArgs
from lit_gpt.data.curate.augment.options import shuffle_options
from lit_gpt.data.curate.augment.perturb import perturb_prompt
from lit_gpt.data.prepare.rows import Row
from lit_gpt.prompts.turns import Turn


def augmented(rows: Iterable[Row], args: AugmentArgs, seed: str, counts: Counter[str]) -> Iterator[Row]:
    """Yields each row, followed by the rows made of it; with `replace` only those, where there are any.

    Args:
        seed: decides all draws, together with the index of a row.
        counts: number of rows made, by kind; added to.
    """
    for i, row in enumerate(rows):
        rng = Random(f"{seed}:{i}")
        made = []
        if rng.random() < args.shuffle_options and (other := _with_options_shuffled(row, rng)):
            counts["options shuffled"] += 1
            made.append(other)
        if rng.random() < args.perturb:
            name = rng.choice(args.perturbations)
            other = _perturbed(made.pop() if made and args.augmented == "replace" else row, rng, name)
            counts[name] += other != row
            made += [other] if other != row else []
        if args.augmented == "add" or not made:
            yield row
        yield from made


def _with_options_shuffled(row: Row, rng: Random) -> Row | None:
    """Returns a row of one question with its options shuffled; None if it has no options that can be."""
    *before, user, assistant = row.turns if len(row.turns) >= 2 else (Turn("user", ""), Turn("user", ""))
    if [t.role for t in before] not in ([], ["system"]) or assistant.role != "assistant":
        return None
    for name in ("context", "text"):
        if found := shuffle_options(getattr(user, name), assistant.text, rng):
            turns = (replace(user, **{name: found[0]}), replace(assistant, text=found[1]))
            return replace(row, turns=(*before, *turns))
    return None


def _perturbed(row: Row, rng: Random, name: str) -> Row:
    """Returns the row with all texts of the user perturbed; answers stay as they are."""
    turns = (
        replace(t, text=perturb_prompt(t.text, rng, name), context=perturb_prompt(t.context, rng, name))
        if t.role == "user"
        else t
        for t in row.turns
    )
    return replace(row, turns=tuple(turns))
