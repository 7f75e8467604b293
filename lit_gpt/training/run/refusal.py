"""What is said of a run that cannot go on with other arguments than before, or that should not unless it is meant."""

from collections.abc import Iterable, Mapping

_RESHAPING = ("method", "lora_r", "lora_dora", "lora_init", "adapter_prompt_length", "adapter_start_layer")
_RESHAPING += tuple(f"lora_{part}" for part in ("query", "key", "value", "projection", "mlp", "head"))
"""Arguments that decide which tensors train, and their shapes."""
_REGROUPING = ("optimizer", "lora_plus_ratio")
"""Arguments that decide what an optimizer keeps of them."""


def impossible(changes: Iterable[str]) -> list[str]:
    """Those changes, by name, under which a checkpoint cannot be read back."""
    return [name for name in changes if name in (*_RESHAPING, *_REGROUPING)]


def refusal(changes: Mapping[str, str]) -> str:
    """One line about changes that would make it another run; offers only what can work.

    Args:
        changes: what changed -> how, as a sentence.
    """
    message = f"this would be another run: {'; '.join(changes.values())}"
    stuck = impossible(changes)
    if not stuck:
        return f"{message}; --allow_changes true goes on all the same"
    flags = ", ".join(f"--{name}" for name in stuck)
    what = "the weights" if any(name in _RESHAPING for name in stuck) else "the optimizer's state"
    return (
        f"{message}; {what} of its checkpoints would not fit, not even with --allow_changes true: leave {flags} as "
        "before, or start a new run with another --out_dir"
    )
