"""Our model as a language model of lm-eval (https://github.com/EleutherAI/lm-evaluation-harness)."""

from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from lightning.fabric import Fabric
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from torch import Tensor
from tqdm import tqdm

from lit_gpt.errors import UserError
from lit_gpt.generation.engine import generate_batch
from lit_gpt.model import GPT
from lit_gpt.tokenizer import Tokenizer

Request = tuple[Any, list[int], list[int]]
"""What lm-eval passes around: (key or None, context ids, continuation ids)."""


class LitLM(TemplateLM):
    """Answers lm-eval's three kinds of requests. Texts become the ids that lm-eval's own `hf` model would make.

    Args:
        fabric: whose precision the model runs in.
        batch_size: sequences side by side.
        name: what results call the model.
    """

    def __init__(self, fabric: Fabric, model: GPT, tokenizer: Tokenizer, batch_size: int, name: str) -> None:
        super().__init__()
        self.fabric, self.model = fabric, model.eval()
        self.lit_tokenizer, self.batch_size = tokenizer, batch_size
        self.max_length, self.max_gen_toks = model.config.block_size, 256
        self.name = name

    @property
    def eot_token_id(self) -> int:
        return self.lit_tokenizer.eos_id

    @property
    def prefix_token_id(self) -> int:
        """What stands for an empty context."""
        bos = self.lit_tokenizer.bos_id
        return self.eot_token_id if bos is None else bos

    @property
    def tokenizer_name(self) -> str:
        return self.name

    def get_model_info(self) -> dict[str, Any]:
        """For the results file."""
        parameters = list(self.model.parameters())
        return {"model_num_parameters": sum(p.numel() for p in parameters), "model_dtype": str(parameters[0].dtype)}

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: Any) -> list[int]:
        return self.lit_tokenizer.encode(string, bos=add_special_tokens)

    def _loglikelihood_tokens(self, requests: Sequence[Request], **kwargs: Any) -> list[tuple[float, bool]]:
        """(log-probability of the continuation, whether greedy decoding gives it) of each request.

        Requests that differ in the last token only are one forward pass: the model sees the same ids in both.
        """
        groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
        for i, (_, context, continuation) in enumerate(requests):
            groups[tuple((context + continuation)[-(self.max_length + 1) : -1])].append(i)
        inputs = sorted(groups, key=len, reverse=True)  # the longest first: little padding, and memory is known early
        results: list[tuple[float, bool]] = [(0.0, False)] * len(requests)
        for start in tqdm(range(0, len(inputs), self.batch_size), desc="Running loglikelihood requests"):
            batch = inputs[start : start + self.batch_size]
            members = [[(i, requests[i][2]) for i in groups[ids]] for ids in batch]
            for row, logits in zip(members, self.logits_at_end(batch, members), strict=True):
                for i, continuation in row:
                    results[i] = score(logits[-len(continuation) :], continuation)
                    if (key := requests[i][0]) is not None:
                        self.cache_hook.add_partial("loglikelihood", key, results[i])
        return results

    @torch.inference_mode()
    def logits_at_end(
        self, batch: Sequence[Sequence[int]], members: Sequence[Sequence[tuple[int, list[int]]]]
    ) -> Iterable[Tensor]:
        """For each row of ids the logits (n, V) in fp32 at its last n positions, n being its longest continuation."""
        width = max(map(len, batch))
        ids = self.fabric.to_device(torch.tensor([[*row, *[0] * (width - len(row))] for row in batch]))
        with self.fabric.autocast():
            hidden = self.model.hidden(ids)  # (B, T, C); padding is on the right, where no real token looks
            for row, states, its in zip(batch, hidden, members, strict=True):
                n = max(len(continuation) for _, continuation in its)
                yield self.model.lm_head(states[len(row) - n : len(row)]).float()

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-probability of whole texts, in windows as long as the model."""
        totals = []
        windows: list[Request] = []
        owners: list[int] = []
        for i, request in enumerate(requests):
            rolling = get_rolling_token_windows(
                token_list=self.tok_encode(request.args[0]),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            )
            for window in map(make_disjoint_window, rolling):
                windows.append((None, *window))
                owners.append(i)
        totals = [0.0] * len(requests)
        for i, (value, _) in zip(owners, self._loglikelihood_tokens(windows), strict=True):
            totals[i] += value
        for request, total in zip(requests, totals, strict=True):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The text that continues each context, up to the first stop string or the end of sequence."""
        order = sorted(range(len(requests)), key=lambda i: -len(requests[i].args[0]))
        batches: dict[str, list[list[int]]] = defaultdict(list)
        for i in order:  # a batch shares its settings
            same = batches[repr(sorted(requests[i].args[1].items()))]
            if not same or len(same[-1]) == self.batch_size:
                same.append([])
            same[-1].append(i)
        results = [""] * len(requests)
        todo = [batch for same in batches.values() for batch in same]
        for batch in tqdm(todo, desc="Running generate_until requests", disable=disable_tqdm):
            settings = requests[batch[0]].args[1]
            for i, text in zip(batch, self.complete([requests[i].args[0] for i in batch], settings), strict=True):
                results[i] = text
                self.cache_hook.add_partial("generate_until", requests[i].args, text)
        return results

    def complete(self, contexts: Sequence[str], settings: dict[str, Any]) -> list[str]:
        """Greedy or sampled continuations of contexts that share lm-eval's generation settings."""
        until = settings.get("until") or []
        until = [u for u in ([until] if isinstance(until, str) else until) if u]
        n_new = int(settings.get("max_gen_toks", self.max_gen_toks))
        if n_new >= self.max_length:
            raise UserError(f"a task asks for {n_new} new tokens, and the model has room for {self.max_length} in all")
        temperature = float(settings.get("temperature") or 0.0) if settings.get("do_sample") else 0.0
        prompts = [self.tok_encode(c)[-(self.max_length - n_new) :] or [self.prefix_token_id] for c in contexts]
        drawn: list[list[int]] = [[] for _ in prompts]
        ended = [False] * len(prompts)
        with self.fabric.autocast():
            for tokens in generate_batch(
                self.model, prompts, n_new, temperature=temperature, stop_ids=self.lit_tokenizer.stop_ids
            ):
                for row, token in enumerate(tokens):
                    if token is None or ended[row]:
                        ended[row] = True
                        continue
                    drawn[row].append(token)
                    tail = self.lit_tokenizer.decode(drawn[row])
                    ended[row] = any(u in tail for u in until)
                if all(ended):
                    break
        return [cut(self.lit_tokenizer.decode(ids), until) for ids in drawn]


def score(logits: Tensor, continuation: Sequence[int]) -> tuple[float, bool]:
    """Log-probability of `continuation` under logits (n, V), and whether each of its tokens is the most likely one."""
    target = torch.tensor(continuation, device=logits.device)
    chosen = logits.log_softmax(-1).gather(-1, target[:, None])
    return chosen.sum().item(), bool((logits.argmax(-1) == target).all())


def cut(text: str, until: Sequence[str]) -> str:
    """`text` up to the first of the stop strings."""
    ends = [text.find(u) for u in until if u in text]
    return text[: min(ends)] if ends else text
