"""What a generate script asks: its flags, standard input and a file of earlier turns as one prompt."""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

from lit_gpt.args import AskArgs
from lit_gpt.data.prepare.schemas import recognize
from lit_gpt.errors import UserError
from lit_gpt.prompts import Exchange, Turn, open_style, stop_ids
from lit_gpt.tokenizer import Tokenizer

QUESTION = "What food do llamas eat?"


class Asked(NamedTuple):
    """A prompt as the model sees it."""

    ids: list[int]
    text: str
    """With everything that the prompt style puts around what is said."""
    stop_ids: frozenset[int]
    """Tokens that end the answer."""


def ask(
    args: AskArgs, prompt_style: str, checkpoint_dir: Path, tokenizer: Tokenizer, end_ids: Collection[int] = ()
) -> Asked:
    """What the model of a folder is asked, in a prompt style.

    Args:
        end_ids: tokens that ended answers in the training, besides the style's own: a call may end otherwise.

    Raises:
        UserError: flags that contradict each other, a conversation that is none, or one that the style refuses.
    """
    style = open_style(prompt_style, checkpoint_dir, tokenizer)
    exchanges = style.exchanges(*_conversation(args))
    eos = tokenizer.id_to_token(tokenizer.eos_id) or ""
    ended = ((e.end or eos) if e.ended and e.answer is not None else "" for e in exchanges)
    text = "".join(e.prompt + (e.answer or "") + end for e, end in zip(exchanges, ended, strict=True))
    return Asked(_ids(exchanges, eos, tokenizer), text, stop_ids(style, tokenizer) | set(end_ids))


def _conversation(args: AskArgs) -> tuple[list[Turn], Sequence[Mapping[str, Any]]]:
    """The turns, and the tools that may be called. Raises: UserError."""
    turns, tools = _earlier(args.conversation) if args.conversation else ([], ())
    if args.system:
        if turns and turns[0].role == "system":
            raise UserError(f"--system, and {args.conversation} has a system text of its own; pass one of them")
        turns = [Turn("system", args.system), *turns]
    is_asked = bool(turns) and turns[-1].role in ("user", "tool")
    if not is_asked:
        if args.conversation and args.prompt is None:
            raise UserError(f"{args.conversation} ends with an answer; pass --prompt, which is asked after it")
        return [*turns, Turn("user", _prompt(args.prompt), args.input)], tools
    if args.prompt is not None or args.input:
        flag = "input" if args.prompt is None else "prompt"
        raise UserError(
            f"--{flag}, and {args.conversation} ends with what is asked ({turns[-1].role}); pass one of them"
        )
    return turns, tools


def _prompt(given: str | None) -> str:
    """The prompt's text. Raises: UserError if it is to come from standard input and nothing does."""
    if given != "-":
        return QUESTION if given is None else given
    text = sys.stdin.read()
    if not text.strip():
        raise UserError("--prompt - reads standard input, and there is nothing in it")
    return text.removesuffix("\n")


def _earlier(path: Path) -> tuple[list[Turn], Sequence[Mapping[str, Any]]]:
    """The turns in a file, and the tools. Raises: UserError if it is not one conversation."""
    try:
        entry = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as e:
        raise UserError(f"--conversation {path} is no JSON file ({' '.join(str(e).split())})") from e
    if isinstance(entry, list):
        entry = {"messages": entry}
    rows = recognize(entry, str(path))(entry, str(path), "conversation")
    if len(rows) != 1:
        raise UserError(f"--conversation {path} has {len(rows)} conversations; pass a file with one")
    return list(rows[0].turns), rows[0].tools


def _ids(exchanges: Sequence[Exchange], eos: str, tokenizer: Tokenizer) -> list[int]:
    """Token ids, piece by piece as in training: a prompt, an answer, its end with the next prompt ..."""
    ids = tokenizer.encode(exchanges[0].prompt)
    for before, e in pairwise(exchanges):
        ids += tokenizer.continue_batch([before.answer or ""])[0]
        end = (before.end or eos) if before.ended else ""
        ids += tokenizer.encode(end + e.prompt, bos=False) if end else tokenizer.continue_batch([e.prompt])[0]
    return ids
