"""The training loop. It knows nothing of finetuning methods: it trains what requires a gradient and saves that."""

from pathlib import Path

import torch
from lightning.fabric import Fabric

from lit_gpt.args import TrainArgs, ValidationArgs
from lit_gpt.checkpoint import save_trained
from lit_gpt.data.batches import ahead, micro_batches, steps
from lit_gpt.data.store import Samples
from lit_gpt.errors import UserError
from lit_gpt.model import GPT
from lit_gpt.training.graphs import recorded_hidden
from lit_gpt.training.loss import loss_sum
from lit_gpt.training.memory import blocks_to_recompute
from lit_gpt.training.monitor import Monitor
from lit_gpt.training.optimizer import make_optimizer
from lit_gpt.training.schedule import learning_rate


def fit(
    fabric: Fabric,
    model: GPT,
    train_data: Samples,
    val_data: Samples,
    path: Path,
    monitor: Monitor,
    train: TrainArgs,
    validation: ValidationArgs,
    seed: int,
) -> None:
    """Train the parameters of `model` that require a gradient, and save them at `path` now and then and at the end.

    Args:
        seed: decides the order of the samples.

    Raises:
        UserError: the loss is no longer a finite number.
    """
    scaled = getattr(fabric._precision, "scaler", None) is not None  # 16-mixed; a fused step leaves no room to clip
    optimizer = fabric.setup_optimizers(make_optimizer(model, train, fused=not scaled))
    n_samples = train.n_samples(len(train_data))
    n_steps = -(-n_samples // train.batch_size)
    max_tokens = micro_batch_tokens(train, fabric.device)
    model.n_recomputed = blocks_to_recompute(model, train, max_tokens, fabric.device)
    with fabric.autocast():
        hidden_of = recorded_hidden(model, max_tokens, train_data.lengths, train.compile)
    monitor.validated(0, validate(fabric, model, val_data, train, validation))

    order = steps(train_data, n_samples, train.batch_size, max_tokens, seed)
    for step, batches in enumerate(ahead(order, fabric.device), 1):
        model.train()
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, n_steps, train) * group["lr_factor"]
        n_targets = sum(batch.n_targets for batch in batches)
        for i, batch in enumerate(batches, 1):
            with fabric.autocast():
                loss = loss_sum(model, batch, hidden_of)
            # divided by the targets of the whole step, so that what shares a forward pass changes nothing
            fabric.backward(loss / max(1, n_targets))
            is_step = i == len(batches)
            if is_step:
                if train.max_norm > 0:
                    fabric.clip_gradients(model, optimizer, max_norm=train.max_norm, error_if_nonfinite=False)
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)  # a recording adds to these very tensors
            monitor.iterated(step, batch, loss.detach(), optimizer.param_groups[0]["lr"], is_step)
        validates = step % validation.eval_interval == 0 or step == n_steps
        saves = step % train.save_interval == 0 or step == n_steps
        if validates or saves:
            monitor.report()
        if not monitor.loss_is_finite:
            raise UserError(
                f"the loss of step {step} is not finite; lower --learning_rate. What was saved before is whole"
            )
        if validates:
            monitor.validated(step, validate(fabric, model, val_data, train, validation))
        if saves:
            save_trained(model, path)


@torch.no_grad()
def validate(fabric: Fabric, model: GPT, data: Samples, train: TrainArgs, validation: ValidationArgs) -> float:
    """Mean loss per target of the validation set, or of its first `eval_iters * micro_batch_size` samples."""
    model.eval()
    n_samples = len(data)
    if validation.eval_iters is not None:
        n_samples = min(n_samples, validation.eval_iters * train.micro_batch_size)
    batches = micro_batches(data, range(n_samples), micro_batch_tokens(train, fabric.device))
    total = torch.zeros((), device=fabric.device, dtype=torch.float32)
    for batch in batches:
        with fabric.autocast():
            total += loss_sum(model, batch.to(fabric.device))
    return total.item() / max(1, sum(batch.n_targets for batch in batches))


def micro_batch_tokens(train: TrainArgs, device: torch.device) -> int:
    """Tokens of a forward pass: what was asked for, or what keeps a device of this kind busy."""
    return train.micro_batch_tokens or (4096 if device.type == "cuda" else 512)
