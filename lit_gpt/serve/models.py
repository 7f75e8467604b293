"""The models that requests name: the base, and the runs that were finetuned from it."""

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.prompts import ChatTemplate, Style
from lit_gpt.serve.refusals import Refusal

_OWN = frozenset(("messages", "tools", "documents", "add_generation_prompt"))
"""Variables of a chat template that say what is asked."""


@dataclass(frozen=True)
class Served:
    """A model that requests can name."""

    name: str
    path: Path
    """Folder that it came from."""
    run: str | None
    """Name of the run in the engine; None for the engine's own model."""
    style: Style | ChatTemplate | None
    """Prompt style in which it is asked; None if it has none."""
    style_name: str
    end_ids: frozenset[int] = frozenset()
    """Tokens that ended answers in its training, besides those of the style."""
    parent: str | None = None
    """Name of the base that a run was finetuned from, if that is served, too."""

    def chat_style(self, kwargs: Mapping[str, Any] | None) -> Style | ChatTemplate:
        """Returns the style in which conversations are shown to the model.

        Args:
            kwargs: variables of a chat template, such as `enable_thinking`.

        Raises:
            Refusal: there is none, or it takes no variables.
        """
        if self.style is None:
            raise Refusal(
                400,
                f"{self.name} has no chat template and was trained with no prompt style; start the server with "
                "--prompt_style, or use /v1/completions",
                "messages",
                "no_prompt_style",
            )
        if not kwargs:
            return self.style
        if not isinstance(self.style, ChatTemplate):
            raise Refusal(
                400,
                f"chat_template_kwargs: {self.name} is asked in the prompt style {self.style_name}, which takes none",
                "chat_template_kwargs",
            )
        if own := _OWN & kwargs.keys():
            field = "chat_template_kwargs"
            raise Refusal(400, f"{field}: {min(own)} is set by the server from the other fields", field)
        twin = copy.copy(self.style)
        twin.variables = self.style.variables | dict(kwargs)
        return twin


class Registry:
    """The models by name; the first one answers requests that name none.

    A server of a single model answers to any name: HELM's and lm-eval's clients have names of their own for it. With
    several, an unknown name is refused, since another model's answer would be taken for that one's.
    """

    def __init__(self, models: Sequence[Served]) -> None:
        self.models = list(models)
        self.by_name = {m.name: m for m in models}

    def find(self, name: str | None) -> Served:
        """Returns the model that a request names; raises Refusal (404) if there is none of that name."""
        if name is None or len(self.models) == 1:
            return self.by_name.get(name or "", self.models[0])
        return self.exactly(name)

    def exactly(self, name: str) -> Served:
        """Returns the model of a name; raises Refusal (404) if there is none."""
        found = self.by_name.get(name)
        if found is None:
            known = ", ".join(self.by_name)
            raise Refusal(404, f"there is no model {name[:100]!r}; known are {known}", "model", "model_not_found")
        return found


def names_of(base: Path, runs: Sequence[Path]) -> list[str]:
    """Returns names for the base and its runs: the folders' names, with their parents' where two would be alike.

    Raises:
        UserError: a run is given twice.
    """
    paths = [path.resolve() for path in (base, *runs)]
    for path, n in Counter(paths).items():
        if n > 1:
            raise UserError(f"--runs names {path} twice")
    depth = 1
    while True:
        names = ["/".join(path.parts[-depth:]) for path in paths]
        alike = {name for name, n in Counter(names).items() if n > 1}
        if not alike:
            return [_short(path, paths, depth) for path in paths]
        depth += 1


def _short(path: Path, paths: Sequence[Path], depth: int) -> str:
    """Returns the shortest end of a path, of up to `depth` parts, that no other path has."""
    for n in range(1, depth):
        if sum(other.parts[-n:] == path.parts[-n:] for other in paths) == 1:
            return "/".join(path.parts[-n:])
    return "/".join(path.parts[-depth:])
