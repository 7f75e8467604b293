"""Our model as an `LM` of lm-eval 0.4.13 (https://github.com/EleutherAI/lm-evaluation-harness).

Scores equal those of lm-eval's own `hf` model on the same weights, question by question: tokens, truncation and
windows follow lm_eval/models/huggingface.py. Unlike there, the softmax is always taken in fp32, the output projection
is computed only for scored positions, and what questions begin alike is read once.
"""

import json
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import lru_cache
from typing import Any

from lit_gpt.errors import UserError
from lit_gpt.evaluation.conversation import conversation_text
from lit_gpt.evaluation.dealing import Answerer
from lit_gpt.evaluation.drawing import generation_settings
from lit_gpt.generation.batching.runs import SharedRun
from lit_gpt.model import GPT
from lit_gpt.parallel.team import ALONE, Team
from lit_gpt.prompts import open_style, stop_ids
from lit_gpt.tokenizer import Tokenizer

try:
    from lm_eval.api.instance import Instance
    from lm_eval.api.model import TemplateLM
    from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
    from tqdm import tqdm
except ModuleNotFoundError as e:
    raise UserError(f'evaluation needs the package {e.name}; run: pip install -e ".[eval]"') from e

_Request = tuple[tuple[str, str] | None, list[int], list[int]]
"""A request of lm-eval: ((context, continuation) as text, or None; ids of the context; ids of the continuation)."""


class LitLM(TemplateLM):
    """Our model as a language model of lm-eval.

    Args:
        model: the model on its device, in its dtype.
        tokenizer: tokenizer of the same checkpoint.
        batch_size: most texts that are computed at once; None takes what fits.
        prompt_style: style in which `apply_chat_template` asks; None if it is never called.
        name: name for lm-eval's caches.
        autocast: context of every forward pass, e.g. `fabric.autocast`.
        run: a LoRA run that answers in place of `model`, which is its base.
        team: the processes that answer together; this one leads.
    """

    def __init__(
        self,
        model: GPT,
        tokenizer: Tokenizer,
        batch_size: int | None = None,
        prompt_style: str | None = None,
        name: str = "",
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        run: SharedRun | None = None,
        team: Team = ALONE,
    ) -> None:
        super().__init__()
        self.answerer = Answerer(model, tokenizer, batch_size, autocast=autocast, run=run, team=team)
        self.model, self.tokenizer, self.batch_size = model, tokenizer, batch_size
        self.prompt_style, self.name = prompt_style, name
        self.style = open_style(prompt_style or "plain", tokenizer.path.parent, tokenizer)
        self.lead: str = getattr(self.style, "lead", "")  # text that the model writes first in an answer
        self._warned: set[str] = set()
        # lm-eval encodes a question once for each of its answers
        self._encode = lru_cache(64)(lambda string, bos: tuple(tokenizer.encode(string, bos=bos)))
        self._device = model.transformer.wte.weight.device

    @property
    def eot_token_id(self) -> int:
        return self.tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """The token that stands before a text without context."""
        return self.tokenizer.eos_id if self.tokenizer.bos_id is None else self.tokenizer.bos_id

    @property
    def max_length(self) -> int:
        return self.model.config.block_size

    @property
    def max_gen_toks(self) -> int:
        return 256

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        """Returns token ids, with the begin-of-sequence token if the model was trained with one.

        Args:
            add_special_tokens: False leaves it out.
        """
        return list(self._encode(string, False if add_special_tokens is False else None))

    def get_model_info(self) -> dict[str, Any]:
        """Returns what lm-eval adds to the `config` of its results."""
        weights = list(self.model.parameters())
        return {"model_num_parameters": sum(w.numel() for w in weights), "model_dtype": str(weights[0].dtype)}

    # loglikelihoods

    def _encode_pair(self, context: str, continuation: str) -> tuple[list[int], list[int]]:
        """Returns the ids of a context and of its continuation as lm-eval splits them; spaces go to the latter.

        Raises:
            UserError: the context is white space alone, and no token of it is left.
        """
        if self.lead and context.endswith(self.lead) and continuation[:1].isspace():
            context = context.removesuffix(self.lead)
        ids = super()._encode_pair(context, continuation)
        if not ids[0]:
            raise UserError(
                f"a question of a task is white space alone ({context!r}), and this model's texts begin with no token "
                f"that its answer {continuation!r} could follow; an empty question would be fine"
            )
        return ids

    def loglikelihood(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[tuple[float, bool]]:
        """Returns (log-probability, whether it is greedy) of each continuation; (0, True) for nothing after nothing."""
        found = iter(super().loglikelihood([r for r in requests if any(r.args)], disable_tqdm=disable_tqdm))
        return [next(found) if any(r.args) else (0.0, True) for r in requests]

    def _loglikelihood_tokens(
        self, requests: Sequence[_Request], disable_tqdm: bool = False, **kwargs: Any
    ) -> list[tuple[float, bool]]:
        """Returns (log-probability of the continuation, whether greedy decoding would give it) for each request.

        Raises:
            UserError: a continuation is longer than the model's context.
        """
        answers, asked = self._merged(requests), {}
        for i, (_, context, continuation) in enumerate(requests):
            if i in answers:
                continue
            if len(continuation) > self.max_length:
                raise UserError(
                    f"an answer has {len(continuation)} tokens, and the model has room for {self.max_length}"
                )
            ids = [*context, *continuation][-(self.max_length + 1) :]
            asked[i] = ids, len(ids) - len(continuation)
        self._warn_of_truncation(sum(len(c) + len(a) > self.max_length + 1 for _, c, a in requests), len(requests))
        progress = tqdm(total=len(requests), initial=len(answers), desc="Log-likelihoods", disable=disable_tqdm)
        for i, answer in self.answerer.scores(asked):
            answers[i] = answer
            if (texts := requests[i][0]) is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
            progress.update()
        progress.close()
        return [answers[i] for i in range(len(requests))]

    def _merged(self, requests: Sequence[_Request]) -> dict[int, tuple[float, bool]]:
        """Returns the answers, by request, to those requests whose continuation has no token of its own.

        Such a continuation is tokenized into the last token of its context: its log-probability is 0, and it counts as
        greedy.
        """
        found = [i for i, (_, _, continuation) in enumerate(requests) if not continuation]
        if found:
            texts = requests[found[0]][0] or ("", "")
            self._warn(
                f"{len(found)} of {len(requests)} answers have no token of their own: tokenized together, "
                f"{texts[0][-20:]!r} and {texts[1]!r} end in one token; their score says nothing. Where the task has "
                'target_delimiter: "", a space there helps'
            )
        return dict.fromkeys(found, (0.0, True))

    def _warn_of_truncation(self, n_truncated: int, n: int, room: int | None = None) -> None:
        """Warns of the number of questions that are longer than the model's context.

        Args:
            room: number of tokens left for a question; the model's context length if not given.
        """
        if n_truncated:
            self._warn(
                f"{n_truncated} of {n} questions are longer than {room or self.max_length} tokens: cut at the beginning"
            )

    def loglikelihood_rolling(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[float]:
        """Returns the log-probability of each whole text; a long text is split into windows without overlap."""
        windows: list[_Request] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            ids = self.tok_encode(request.args[0])
            for window in get_rolling_token_windows(ids, self.prefix_token_id, self.max_length, context_len=1):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(i)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows, disable_tqdm), strict=True):
            totals[owner] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", (request.args[0],), total)
        return totals

    # generation

    def generate_until(self, requests: Sequence[Instance], disable_tqdm: bool = False) -> list[str]:
        """Returns the text that the model generates for each request, up to its first stop string.

        Questions are cut where the text that is asked for would not fit behind them. A task that asks for as many
        tokens as the model has room for, or more, keeps its questions and gets what is left, as with those models of
        lm-eval that have this case (`maybe_truncate` in lm_eval/models/utils.py).

        Raises:
            UserError: the task asks for a kind of sampling that we do not have.
        """
        groups: dict[str, list[int]] = {}  # settings -> requests
        for i, request in enumerate(requests):
            groups.setdefault(json.dumps(request.arguments[1], sort_keys=True, default=str), []).append(i)
        ends = frozenset(stop_ids(self.style, self.tokenizer))
        texts = [""] * len(requests)
        progress = tqdm(total=len(requests), desc="Generating", disable=disable_tqdm)
        for members in groups.values():
            settings = generation_settings(requests[members[0]].arguments[1], self.max_gen_toks)
            room = self.max_length - settings.max_new_tokens
            if room <= 0:
                room = self.max_length - 1
                self._warn(
                    f"a task asks for {settings.max_new_tokens} new tokens, and the model has room for "
                    f"{self.max_length} with the question: texts end there"
                )
            prompts = {i: self.tok_encode(requests[i].args[0].removesuffix(self.lead)) for i in members}
            self._warn_of_truncation(sum(len(ids) > room for ids in prompts.values()), len(prompts), room)
            prompts = {i: (ids or [self.prefix_token_id])[-room:] for i, ids in prompts.items()}
            for i, text in self.answerer.texts(prompts, settings, ends):
                texts[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
                progress.update()
        progress.close()
        return texts

    # prompt styles

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """Returns the turns as text in the prompt style, with the beginning of the answer if the task gives one.

        If the style refuses a system text, that is left out with a warning, as in lm-eval's own `hf` model.

        Raises:
            UserError: the style refuses the other turns.
        """
        try:
            return conversation_text(self.style, self.tokenizer, chat_history, add_generation_prompt)
        except UserError as e:
            others = [m for m in chat_history if m["role"] != "system"]
            if len(others) == len(chat_history):
                raise
            text = conversation_text(self.style, self.tokenizer, others, add_generation_prompt)
            self._warn(f"system texts and tasks' descriptions are left out of the questions: {e}")
            return text

    def _warn(self, text: str) -> None:
        """Prints a warning on stderr, once."""
        if text not in self._warned:
            self._warned.add(text)
            print(f"warning: {text}", file=sys.stderr)

    @property
    def tokenizer_name(self) -> str:
        """Name of what the texts of requests depend on, for lm-eval's caches."""
        return f"{self.name}-{self.prompt_style}".replace("/", "__")

    def chat_template(self, chat_template: bool | str = False) -> str:
        return self.prompt_style or ""
