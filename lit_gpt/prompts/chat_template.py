"""A model's own chat template: the Jinja program that its tokenizer ships, run in Jinja's sandbox.

https://huggingface.co/docs/transformers/chat_templating says what a template may expect. Its programs run in the
process for foreign code, within limits of time and memory.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.foreign import LimitError, Limits, Remote
from lit_gpt.prompts.ends import find_ending
from lit_gpt.prompts.hosted import GuardedProgram, limits_for, n_characters
from lit_gpt.prompts.messages import find_form
from lit_gpt.prompts.renderer import Renderer
from lit_gpt.prompts.turns import Exchange, Turn
from lit_gpt.records import is_file_name
from lit_gpt.tokenizer import Tokenizer
from lit_gpt.tokenizer.settings import content, read_optional, read_settings

FILE = "chat_template.jinja"
_FOLDER = "additional_chat_templates"
"""Folder in which a tokenizer keeps templates with names of their own."""
_HOSTED = "lit_gpt.prompts.hosted:_HostedRenderer"
_CHUNK = 2**19
"""Most characters of conversations that are rendered in one call, unless one conversation has more."""

Conversation = tuple[Sequence[Turn], Sequence[Mapping[str, Any]]]
"""Turns of a conversation, and schemas of the tools that may be called in it."""


class ChatTemplate(Renderer):
    """The chat template of a checkpoint folder.

    Args:
        template_kwargs: further variables for the template, such as `enable_thinking`.

    Raises:
        UserError: the folder has no chat template, or one that is not a Jinja program, or one that takes too much time
            or memory for a short conversation.
    """

    def __init__(
        self,
        checkpoint_dir: Path,
        tokenizer: Tokenizer | None = None,
        template_kwargs: Mapping[str, Any] | None = None,
    ) -> None:
        tokenizer = tokenizer or Tokenizer(checkpoint_dir)
        self.text, self.template_kwargs = read_template(checkpoint_dir), dict(template_kwargs or {})
        self.tokens = _special_tokens(checkpoint_dir, tokenizer)
        self._tool_text = read_templates(checkpoint_dir).get("tool_use") or self.text
        program = GuardedProgram(self.text, checkpoint_dir)
        with_tools = program if self._tool_text == self.text else GuardedProgram(self._tool_text, checkpoint_dir)
        super().__init__(checkpoint_dir, program, with_tools, self.tokens | self.template_kwargs)
        self.form = find_form(lambda turns, form: self._run(turns, False, (), form)[0])
        self.ending = find_ending(lambda turns: self.render(turns, ask=False), tokenizer)
        self._remote: Remote | None = None

    def exchanges_of(self, conversations: Sequence[Conversation]) -> Iterator[list[Exchange] | UserError]:
        """Yields what `exchanges` returns for each of many conversations, or the error that it raises.

        They are rendered where the template runs, so that not each text has to go to and fro.
        """
        for chunk in _chunks(conversations):
            try:
                yield from self._rendered(chunk)
            except LimitError as e:
                if len(chunk) == 1:
                    yield e
                else:  # one by one, to know which it is
                    yield from (found for one in chunk for found in self.exchanges_of([one]))

    def _rendered(self, conversations: Sequence[Conversation]) -> list[list[Exchange] | UserError]:
        """Returns the exchanges of conversations, or errors, as they come from the other process.

        Raises:
            LimitError: they take too much time or memory.
        """
        if self._remote is None:
            parts = (self.folder, self.text, self._tool_text, self.variables, self.form, self.ending)
            what = f"the chat template of {self.folder}"
            self._remote = Remote(what, _HOSTED, *parts, limits=limits_for(len(self.text)), host="templates")
        n = sum(n_characters([turns, tools]) for turns, tools in conversations)
        n_turns = sum(len(turns) for turns, _ in conversations)
        limits = limits_for(n)
        limits = Limits(limits.seconds + n / 20_000 + n_turns / 100, limits.n_bytes)
        doing = f"for {'a conversation' if len(conversations) == 1 else 'conversations'} of {n_turns:,} turns"
        found = self._remote.call("exchanges_of", conversations, limits=limits, doing=doing)
        return [UserError(one) if isinstance(one, str) else [Exchange(*e) for e in one] for one in found]


def _chunks(conversations: Sequence[Conversation]) -> Iterator[list[Conversation]]:
    """Yields the conversations in order, in lists of at most _CHUNK characters or of one conversation."""
    chunk: list[Conversation] = []
    size = 0
    for turns, tools in conversations:
        n = n_characters([turns, tools])
        if chunk and size + n > _CHUNK:
            yield chunk
            chunk, size = [], 0
        chunk.append((turns, tools))
        size += n
    if chunk:
        yield chunk


def _special_tokens(checkpoint_dir: Path, tokenizer: Tokenizer) -> dict[str, str]:
    """Returns the special tokens by role (`bos_token` ...), from the settings or else from the tokenizer's own file."""
    names = read_settings(checkpoint_dir).names
    tokens = {role: token for role, value in names.items() if role.endswith("_token") and (token := content(value))}
    for role, i in (("bos_token", tokenizer.bos_id), ("eos_token", tokenizer.eos_id)):
        if i is not None and (token := tokenizer.id_to_token(i)):
            tokens.setdefault(role, token)
    return tokens


def read_templates(checkpoint_dir: Path) -> dict[str, str]:
    """Returns all templates of the folder by name; `default` is chat_template.jinja if that file exists."""
    stated = read_optional(checkpoint_dir / "tokenizer_config.json").get("chat_template")
    entries = stated if isinstance(stated, list) else [{"name": "default", "template": stated}]
    named = {e["name"]: e.get("template") for e in entries if isinstance(e, dict) and is_file_name(e.get("name"))}
    named |= {p.stem: p.read_text(encoding="utf-8") for p in sorted((checkpoint_dir / _FOLDER).glob("*.jinja"))}
    if (path := checkpoint_dir / FILE).is_file():
        named["default"] = path.read_text(encoding="utf-8")
    return {name: text for name, text in named.items() if isinstance(text, str)}


def read_template(checkpoint_dir: Path) -> str:
    """Returns the text of the default template: chat_template.jinja, or else that of tokenizer_config.json.

    Raises:
        UserError: the folder has no default template.
    """
    found = read_templates(checkpoint_dir).get("default")
    if found is None:
        raise UserError(
            f"{checkpoint_dir} has no chat template (no {FILE}, none in tokenizer_config.json); "
            "pass another --prompt_style"
        )
    return found
