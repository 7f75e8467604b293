"""Tiny models whose layers run in the kernels of other packages, beside plain torch: on a GPU, or in an interpreter.

python tests/kernel_runs.py prints the figures of Triton's interpreter, which runs on the CPU, as JSON; packages that
are not installed are left out.
"""

import contextlib
import json
import os
import sys
from types import ModuleType, SimpleNamespace

KINDS = ("lfm2", "qwen3.5", "granite4", "nemotron-h")
"""Kinds of models: with a convolution, and with silu after it before the delta rule, and twice before Mamba-2."""


def compared(kind, device, dtype):
    """Returns the kernels that a model of this kind calls, and how far loss, logits and gradients are off without them.

    The distances are norms relative to plain torch's; a gradient's is the largest of all parameters with one. Once
    documents are packed, and once some begin with what lies before them, of which only fla-core has kernels.
    """
    import torch
    from tiny import documents_of, tiny

    from lit_gpt.data.batches import collate
    from lit_gpt.layers import mixing_kernels
    from lit_gpt.training.loss import loss_sum

    torch.manual_seed(0)
    model = tiny(kind).to(device, dtype)
    batches = [collate(documents_of((70, 1, 20, 300))), collate(documents_of((9, 30, 12, 12)), [(7, 2)])]
    find, called = mixing_kernels._found, set()

    def noted(kernel):
        found = find(kernel)
        return found and (lambda *args, **kwargs: called.add(kernel) or found(*args, **kwargs))

    def results(batch):
        model.zero_grad()
        hidden = model.hidden(batch.ids[None], documents=batch.documents)
        loss = loss_sum(model, batch)
        loss.backward()
        made = {"loss": loss, "hidden": hidden} | {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
        return {name: x.detach().float().cpu().clone() for name, x in made.items()}

    off = dict.fromkeys(("loss", "hidden", "gradients"), 0.0)
    for batch in (batch.to(device) for batch in batches):
        mixing_kernels._found = noted
        try:
            got = results(batch)
        finally:
            mixing_kernels._found = find
        with mixing_kernels.without_kernels():
            want = results(batch)
        for name, x in got.items():
            kind_of = name if name in off else "gradients"
            off[kind_of] = max(off[kind_of], float((x - want[name]).norm() / want[name].norm().clamp(min=1e-6)))
    return {"kernels": sorted(called), "off": off}


def _interpret():
    """Makes Triton's interpreter run the packages' kernels, with one choice of sizes each, as none can be timed."""
    os.environ["TRITON_INTERPRET"] = "1"
    import torch

    from lit_gpt.layers import mixing_kernels

    torch.cuda.device = lambda *unused: contextlib.nullcontext()
    torch.cuda.get_device_properties = lambda *unused: SimpleNamespace(multi_processor_count=1)
    sys.modules["selective_scan_cuda"] = ModuleType("selective_scan_cuda")  # compiled; Mamba-2 needs none of it
    mixing_kernels._serves = lambda x: mixing_kernels._settings["on"]
    of = mixing_kernels._KERNELS
    of["causal_conv1d"] = of["causal_conv1d"]._replace(oldest=(99, 0))  # no Triton
    for kernel in of:
        mixing_kernels._found(kernel)
    autotuner = sys.modules["triton.runtime.autotuner"].Autotuner
    for module in [m for name, m in sys.modules.items() if name.startswith(("fla.", "mamba_ssm."))]:
        for value in list(vars(module).values()):
            while value is not None and not isinstance(value, autotuner):
                value = getattr(value, "fn", None) if type(value).__module__.startswith("triton") else None
            if value is not None:
                value.configs = value.configs[-1:]


if __name__ == "__main__":
    _interpret()
    import torch

    with contextlib.redirect_stdout(sys.stderr):
        figures = {kind: compared(kind, torch.device("cpu"), torch.float32) for kind in sys.argv[1:] or KINDS}
    print(json.dumps(figures))
