"""What a model cannot answer, whoever else is answered: said when the request comes."""

from collections.abc import Collection

from lit_gpt.config import Config
from lit_gpt.errors import UserError, shown
from lit_gpt.generation.request import Request
from lit_gpt.generation.sampling.sampler import check_bias


def require_answerable(request: Request, config: Config, runs: Collection[str]) -> None:
    """Checks a request before it is taken in.

    Args:
        runs: names of the runs that are served.

    Raises:
        UserError: the prompt is empty, has tokens that the model does not have, or is longer than its context; a
            bias is for no token; or there is no such run.
    """
    n, V = len(request.ids), config.padded_vocab_size
    if n == 0:
        raise UserError("the prompt has no tokens")
    if wrong := [i for ids in (request.ids, *request.continuations) for i in ids if not 0 <= i < V]:
        raise UserError(f"token {wrong[0]} is not one of the model's {V:,}")
    if n - (request.max_new_tokens == 0) > config.block_size:
        raise UserError(f"the prompt has {n:,} tokens, and the model has room for {config.block_size:,} in all")
    if request.continuations and config.mixers is not None:
        kinds = ", ".join(sorted(set(config.mixers) - {"attention", "none"}))
        raise UserError(
            f"continuations of one prompt cannot be scored together by {config.name}, whose layers of kind {kinds} "
            "read one text; ask for each of them with prompt_logprobs"
        )
    longest = max(map(len, request.continuations), default=0)
    if longest and n + longest - 1 > config.block_size:
        raise UserError(
            f"the prompt and a continuation have {n + longest:,} tokens, and the model has room for "
            f"{config.block_size:,} and one more"
        )
    check_bias(request.sampling, V)
    if request.run is not None and request.run not in runs:
        known = f"known are {', '.join(runs)}" if runs else "the model is served alone"
        raise UserError(f"there is no run {shown(request.run)}; {known}")
