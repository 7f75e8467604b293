"""How long a run takes: operations, divided by a rate from a probe or from the table of devices."""

from dataclasses import asdict, dataclass

from lit_gpt.layers.linear import LinearLayer
from lit_gpt.layers.quantize import QUANTIZATIONS
from lit_gpt.model import GPT
from lit_gpt.planning.job import Job
from lit_gpt.planning.work import Work
from lit_gpt.training.flops import forward_flops, training_flops
from lit_gpt.training.memory import checkpoint_bytes, trained_bytes

_SHARE, _SHARE_LOST = 0.672, 0.121
"""Share of the matmul rate that a LoRA step reaches on bf16 weights if no linear layer is wrapped, and what is lost of
it if all are: 64.8 % with one of five, 55.1 % with five of five on an H100 (benchmarks/results/gpu.txt)."""
_CALLED, _EAGER = 0.96, 0.47
"""Speed of a step whose kernels are called one by one, and that is not compiled either, relative to a recorded one."""
_HOST = 0.012
"""Seconds that the host takes for a block of a micro-batch that is recomputed, and so never recorded: 0.38 s for 32."""
FEW_TOKENS = 160
"""Tokens that take as long as the fixed cost of a forward pass: with 8,192 tokens it is 2 % faster than 4,096."""
_COMPILING, _READING, WRITING = 30.0, 1.0e9, 0.3e9
"""Seconds that compiling and recording take on a GPU; bytes a second from and to a disk, checksums included."""
_DRAWING = 3.0
"""How many times as long a token takes that is drawn as one that is read, with some dozens of answers at once."""
_TO_HOST = 20e9
"""Bytes a second between GPU and host over PCIe 4.0 with 16 lanes: an estimate, not measured."""
_STARTING, _ENDING = 12.0, 1.5
"""Seconds of imports and of putting a model together; of the curve, the report, and of what Python does at its exit."""


@dataclass(frozen=True)
class Rates:
    """The speed of a machine in operations a second, and the seconds of what else takes time."""

    training: float
    validation: float
    optimizer_seconds: float
    """Seconds of a step of the optimizer alone."""
    starting: float
    """Seconds from the command to the first forward pass."""
    saving: float
    """Seconds of a save."""
    shortest: float
    """Seconds of a forward and backward pass of a few tokens."""
    source: str
    """Text that says where the rates come from."""


@dataclass(frozen=True)
class Times:
    """The seconds of a run by what they go into."""

    starting: float
    training: float
    validating: float
    saving: float
    merging: float = 0.0
    reference: float = 0.0
    """Seconds of computing the answers of preferences once under the reference; 0 where that was done before."""
    rollouts: float = 0.0
    """Seconds of drawing the answers that the model learns from."""
    ending: float = _ENDING

    @property
    def trained(self) -> float:
        """Seconds until the training is over."""
        return self.total - self.merging - self.ending

    @property
    def total(self) -> float:
        return sum(asdict(self).values())


def rates_of_device(job: Job, model: GPT, work: Work, n_again: int) -> Rates | None:
    """Returns the rates by the table of devices; None if it does not know the device's rate."""
    if not job.device.rate:
        return None
    layers = [name for name, m in model.named_modules() if isinstance(m, LinearLayer) and ".h." in name]
    wrapped = sum(name.endswith(".linear") for name in layers) / len(layers)
    share = _SHARE - _SHARE_LOST * wrapped
    kind = job.quantize
    if kind:
        share *= QUANTIZATIONS[kind if job.device.fp8 or kind != "fp8" else "bnb.nf4"].speed
    if not job.train.compile:
        share *= _EAGER
    elif n_again or job.config.mlp == "moe" or job.method == "full" or not job.train.records:
        share *= _CALLED
    share *= 0.5 if job.weight_dtype.itemsize == 4 and not job.mixed else 1.0  # TF32 has half the rate
    tokens = work.n_computed / work.n_passes
    share *= (tokens / (tokens + FEW_TOKENS)) / (4096 / (4096 + FEW_TOKENS))
    rate = job.device.rate * share
    source = f"{share:.0%} of {job.device.rate / 1e12:.0f} TFLOP/s, from the table of devices"
    n_bytes = sum(p.numel() * p.element_size() for p in model.parameters())
    trained = trained_bytes(model)
    optimizer_seconds = 4 * trained / 1e12  # weights, gradients and two states, at about 1 TB/s
    if job.train.offload_gradients:
        passes = work.n_passes / work.n_steps  # each takes all gradients away, and all but the first also bring some
        optimizer_seconds += 2 * passes * trained / _TO_HOST
    return Rates(
        training=rate,
        validation=rate,
        optimizer_seconds=optimizer_seconds,
        starting=_STARTING + n_bytes / _READING + (_COMPILING if job.train.compile else 0.0),
        saving=checkpoint_bytes(model) / WRITING,
        shortest=_HOST * n_again,
        source=source,
    )


def times_of(job: Job, model: GPT, work: Work, rates: Rates, n_again: int) -> Times:
    """Returns the seconds of the whole run at these rates."""
    merged = 2 * sum(p.numel() for p in model.parameters() if not p.requires_grad) if job.merge else 0  # in 16 bits
    training = (
        training_flops(model, work.n_computed, work.n_targets, squares=work.squares, n_recomputed=n_again)
        / rates.training
    )
    validation = forward_flops(model, work.n_val_computed, work.n_val_targets, work.val_squares) / rates.validation
    mean_length = work.squares / work.n_computed
    tried = training_flops(
        model, work.largest, work.most_targets, squares=work.largest * mean_length, n_recomputed=n_again
    )
    reference = 0.0
    if job.has_reference:
        share = min(1.0, work.n_rows / work.n_samples)  # of the samples of all epochs, those of the first
        once = forward_flops(model, work.n_computed, work.n_targets, work.squares) * share / rates.validation
        reference = once + validation
    rollouts = 0.0
    if job.grpo:  # each token of an answer by itself
        drawn = forward_flops(model, work.n_targets, work.n_targets, work.squares) / rates.validation
        rollouts = _DRAWING * drawn + work.n_validations * _DRAWING * validation
    return Times(
        reference=reference,
        rollouts=rollouts,
        starting=rates.starting + tried / rates.training,
        training=max(training, work.n_passes * rates.shortest) + work.n_steps * rates.optimizer_seconds,
        validating=work.n_validations * validation,
        saving=work.n_saves * rates.saving,
        merging=merged / _READING + merged / WRITING,
    )
