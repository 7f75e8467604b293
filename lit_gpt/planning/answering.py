"""The memory of answers that the model itself writes during a run: to learn from, or to be scored."""

from lit_gpt.args.grpo import GrpoArgs
from lit_gpt.data.store import Samples
from lit_gpt.layers.linear import LinearLayer
from lit_gpt.model import GPT
from lit_gpt.planning.job import Job
from lit_gpt.training.validation import n_validated


def answering_items(
    job: Job, model: GPT, data: tuple[Samples, Samples], training_items: dict[str, int]
) -> dict[str, int]:
    """Returns the bytes of every item that answers add to those of training, on the device.

    Answers are written between steps, when activations, logits and a block's work take nothing: the KV cache of GRPO's
    answers counts for what it takes beyond them. That of a score (`--best_task`) takes what is free.

    Args:
        data: training and validation samples; the longest of them stands for the longest prompt.
        training_items: those of `memory_items`.
    """
    items: dict[str, int] = {}
    if job.grpo or job.validation.best_task:
        items["weights packed for answering"] = _packed_bytes(job, model)
    if job.grpo:
        passing = sum(training_items[name] for name in ("activations", "logits", "one block's work"))
        items["KV cache of answers"] = max(0, _cache_bytes(job, job.grpo, data) - passing)
    return items


def _packs(job: Job) -> bool:
    """Returns whether the engine packs weights in fp16: on a CPU, if that keeps them, as it does published ones.

    See lit_gpt/generation/cpu/products.py.
    """
    return job.device.kind == "cpu" and not job.mixed and job.quantize in (None, "int8")


def _packed_bytes(job: Job, model: GPT) -> int:
    layers = [m for m in model.modules() if isinstance(m, LinearLayer)]
    return 2 * sum(m.in_features * m.out_features for m in layers) if _packs(job) else 0


def _cache_bytes(job: Job, grpo: GrpoArgs, data: tuple[Samples, Samples]) -> int:
    """Returns the bytes of the KV cache of the answers that are written at once; beside packed weights it is fp32."""
    drawn = job.train.batch_size * grpo.steps_per_rollout * grpo.group_size
    at_once = min(grpo.rollout_rows, max(drawn, n_validated(len(data[1]), job.train, job.validation)))
    longest = max(int(samples.lengths.max(initial=0)) for samples in data) + grpo.max_new_tokens
    c = job.config
    values = sum(heads * n for i in range(c.n_layer) for heads, n in c.cached(i))
    return at_once * longest * values * (4 if _packs(job) else job.compute_itemsize)
