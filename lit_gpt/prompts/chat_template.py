"""A model's own chat template, a Jinja program that its tokenizer ships; it runs in Jinja's sandbox.

https://huggingface.co/docs/transformers/chat_templating says what a template may expect.
"""

import json
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.prompts.turns import Exchange, Turn
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.tokenizer.settings import content, read_optional, read_settings

FILE = "chat_template.jinja"
_FOLDER = "additional_chat_templates"
"""Where a tokenizer keeps templates with names of their own."""


class ChatTemplate:
    """The chat template of a checkpoint folder.

    Raises:
        UserError: the folder has none, or one that is no Jinja program.
    """

    def __init__(self, checkpoint_dir: Path, tokenizer: Tokenizer | None = None) -> None:
        tokenizer = tokenizer or Tokenizer(checkpoint_dir)
        self.folder, self.text = checkpoint_dir, read_template(checkpoint_dir)
        names = read_settings(checkpoint_dir).names
        self.tokens = {
            role: content(value) for role, value in names.items() if role.endswith("_token") and content(value)
        }
        ends = {i: tokenizer.id_to_token(i) for i in (tokenizer.eos_id, *sorted(tokenizer.stop_ids))}
        self.ends = [token for token in ends.values() if token]
        self.template = compiled(self.text, checkpoint_dir)

    def render(self, turns: Sequence[Turn], ask: bool) -> str:
        """The text for `turns`.

        Args:
            ask: with what comes before the next answer.

        Raises:
            UserError: the template refuses them.
        """
        messages = [{"role": t.role, "content": f"{t.text}\n\n{t.context}" if t.context else t.text} for t in turns]
        try:
            return self.template.render(messages=messages, add_generation_prompt=ask, **self.tokens)
        except Exception as e:  # somebody's program: its mistakes are of any kind
            reason = " ".join(str(e).split())
            raise UserError(f"the chat template of {self.folder} refuses a conversation: {reason}") from e

    def exchanges(self, turns: Sequence[Turn]) -> list[Exchange]:
        """Prompt and answer in turns; the last answer may be missing.

        An answer is what the template adds to the text that asks for it, up to the token that ends it. Where it shows
        an answer otherwise once more turns follow, as Qwen 3 leaves out what was thought, the last answer is the only
        one, and its prompt has the others as generation will see them.

        Raises:
            UserError: the template refuses the conversation, or does not go on from the text that asks for an answer.
        """
        asks = turns[-1].role != "assistant"
        whole = self.render(turns, asks)
        answers = [self.answer_in(whole, turns, i) for i, t in enumerate(turns) if t.role == "assistant"]
        if not asks and answers[-1] is None:
            end = self.render(turns[:-1], ask=True)[-20:]
            raise UserError(
                f"the chat template of {self.folder} ends with {end!r} where it asks for an answer, and does not show "
                "the answer after that; take another --prompt_style"
            )
        if None in answers:
            answers = [] if asks else answers[-1:]
        found, done = [], 0
        for start, answer, end in answers:
            found.append(Exchange(whole[done:start], answer, end))
            done = start + len(answer) + len(end or "")
        return [*found, Exchange(whole[done:])] if asks else found

    def answer_in(self, whole: str, turns: Sequence[Turn], i: int) -> tuple[int, str, str | None] | None:
        """Where in `whole` the answer of turn i begins, the answer, and the token that ends it; None if what the model
        would have written there is not in `whole`.

        Raises:
            UserError: the template refuses the conversation up to there.
        """
        asked = self.render(turns[:i], ask=True)
        answered = whole if i == len(turns) - 1 else self.render(turns[: i + 1], ask=False)
        answer, end = self.cut(answered[len(asked) :], turns[i].text.strip())
        there = answered.startswith(asked) and whole.startswith(asked + answer + (end or ""))
        return (len(asked), answer, end) if there else None

    def cut(self, tail: str, said: str) -> tuple[str, str | None]:
        """(answer, token that ends it) of what a template puts after the text that asks for it."""
        after = tail.find(said) + len(said) if said in tail else 0
        places = [(at, -len(token), token) for token in self.ends if (at := tail.find(token, after)) >= 0]
        if not places:
            return tail, None
        at, _, token = min(places)
        return tail[:at], token


def read_templates(checkpoint_dir: Path) -> dict[str, str]:
    """Name -> template, of all that the folder has; `default` is the one of chat_template.jinja, if that is there."""
    stated = read_optional(checkpoint_dir / "tokenizer_config.json").get("chat_template")
    entries = stated if isinstance(stated, list) else [{"name": "default", "template": stated}]
    named = {e.get("name"): e.get("template") for e in entries if isinstance(e, dict)}
    named |= {p.stem: p.read_text(encoding="utf-8") for p in sorted((checkpoint_dir / _FOLDER).glob("*.jinja"))}
    if (path := checkpoint_dir / FILE).is_file():
        named["default"] = path.read_text(encoding="utf-8")
    return {name: text for name, text in named.items() if isinstance(name, str) and isinstance(text, str)}


def read_template(checkpoint_dir: Path) -> str:
    """The template's text: chat_template.jinja, else that of tokenizer_config.json. Raises: UserError."""
    found = read_templates(checkpoint_dir).get("default")
    if found is None:
        raise UserError(
            f"{checkpoint_dir} has no chat template (no {FILE}, none in tokenizer_config.json); "
            "pass another --prompt_style"
        )
    return found


def compiled(text: str, folder: Path) -> Any:
    """Raises: UserError if the text is no Jinja program."""
    import jinja2
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols", generation_extension()]
    )
    environment.filters["tojson"] = to_json
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda form: datetime.now().strftime(form)}
    try:
        return environment.from_string(text)
    except jinja2.TemplateError as e:
        raise UserError(f"the chat template of {folder} is no Jinja program ({e})") from e


def generation_extension() -> type:
    """A tag `{% generation %}` ... `{% endgeneration %}` that shows what is in it; transformers masks by it."""
    from jinja2 import nodes
    from jinja2.ext import Extension

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Any) -> Any:
            line = next(parser.stream).lineno
            body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
            return nodes.Scope(body, lineno=line)

    return Generation


def to_json(value: Any, indent: int | None = None, **options: Any) -> str:
    """Jinja's own would write `<` and `'` as HTML wants them."""
    return json.dumps(value, ensure_ascii=False, indent=indent, **options)


def refuse(message: str) -> None:
    """What templates call with a conversation that they cannot show."""
    import jinja2

    raise jinja2.TemplateError(message)
