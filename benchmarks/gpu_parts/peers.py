"""Other people's LoRA steps on the same documents: transformers with peft (padded, packed), and litgpt's own recipe.

All have rank 8 on q and v, dropout 0.05, bf16 weights, AdamW, and no recomputation unless it does not fit.
"""

from collections.abc import Sequence
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any

import numpy as np
import ours
import torch
from gpu_parts.context import Context, Skip
from gpu_parts.documents import Document, n_tokens
from gpu_parts.layouts import Rows, end_to_end, packed, padded, step_runner
from gpu_parts.timing import measure
from gpu_parts.training import data

if TYPE_CHECKING:
    from peft import PeftModel


def run(context: Context) -> None:
    versions = ", ".join(f"{name} {version_of(name)}" for name in ("transformers", "peft", "litgpt"))
    print(f"  {versions}; micro-batches of 4 documents where padded, rows of {context.rows} tokens where packed")
    print(
        f"  {'peer':48}{'documents':13}{'real tok/s':>11}{'samples/s':>10}{'+-':>6}{'GB peak':>9}{'reserved':>9}  ours"
    )
    context.attempt("litgpt", litgpt, context, needs_s=20)
    if find_spec("transformers") is None or find_spec("peft") is None:
        print("  transformers and peft: skipped, not installed")
    else:
        transformers_and_peft(context)


def version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


def transformers_and_peft(context: Context) -> None:
    context.attempt("attention of packed rows", apart, context, needs_s=5)
    for adapters in ("fp32", "bf16"):
        model = context.attempt(f"peft, adapters {adapters}", peft_model, context, adapters, needs_s=20)
        if model is None:
            continue
        for layout, name in (
            ("padded by 4", "instructions"),
            ("packed", "instructions"),
            ("packed", "full"),
            *([("padded by 32", "instructions")] if adapters == "bf16" else []),
        ):
            row = context, model, adapters, layout, name
            context.attempt(f"peft, adapters {adapters}, {layout}, {name}", peft_step, *row, needs_s=12)
        del model, row


def llama(context: Context) -> Any:
    """transformers' Llama of the benchmark's shape, random weights in bf16."""
    from transformers import AutoModelForCausalLM, LlamaConfig

    c = context.config
    config = LlamaConfig(
        vocab_size=c.padded_vocab_size,
        hidden_size=c.n_embd,
        intermediate_size=c.intermediate_size,
        num_hidden_layers=c.n_layer,
        num_attention_heads=c.n_head,
        num_key_value_heads=c.n_query_groups,
        max_position_embeddings=c.block_size,
        rms_norm_eps=c.norm_eps,
        use_cache=False,
    )
    with torch.device(context.device):
        return AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")


def peft_model(context: Context, adapters: str) -> "PeftModel":
    """Args: adapters: dtype of LoRA's weights; peft's own choice is fp32."""
    from peft import LoraConfig, get_peft_model

    settings = LoraConfig(
        r=ours.QV.lora_r,
        lora_alpha=int(ours.QV.lora_alpha),
        lora_dropout=ours.QV.lora_dropout,
        target_modules=["q_proj", "v_proj"],
        task_type="CAUSAL_LM",
    )
    model = get_peft_model(llama(context), settings, autocast_adapter_dtype=adapters == "fp32")
    return model.train()


def peft_step(context: Context, model: "PeftModel", adapters: str, layout: str, name: str) -> None:
    label = f"transformers, adapters {adapters}, {layout}"
    documents = data(context, name)
    place = context.device
    if layout == "packed":
        batches = packed(documents, context.rows, place)
    else:
        batches = padded(documents, int(layout.split()[-1]), place)
    step = step_runner(model)

    def whole() -> None:
        step(batches)

    try:
        step(batches[:2])
        measured = measure(whole, context.device, context.repeats, warmup=0)
    except torch.cuda.OutOfMemoryError:
        model.zero_grad()
        torch.cuda.empty_cache()
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
        label += ", recomputing"
        measured = measure(whole, context.device, context.repeats, warmup=1)
        model.gradient_checkpointing_disable()
    report(context, label, key="hf_" + layout.replace(" ", "_"), name=name, documents=documents, measured=measured)


def report(context: Context, label: str, key: str, name: str, documents: Sequence[Document], measured) -> None:
    """Print the row; the fastest of a layout goes to `figures`, with the ratio of ours to it."""
    tokens, samples = (n / measured.seconds for n in (n_tokens(documents), len(documents)))
    mine = context.figures.get(f"bf16.qv.{name}.1.tokens_per_sec", float("nan"))
    key = f"{key}.{name}"
    context.figures[f"{key}.tokens_per_sec"] = max(tokens, context.figures.get(f"{key}.tokens_per_sec", 0.0))
    context.figures[f"{key}.ours"] = mine / context.figures[f"{key}.tokens_per_sec"]
    print(
        f"  {label:48}{name:13}{tokens:11.0f}{samples:10.2f}{measured.spread:6.1%}{measured.allocated_gb:9.2f}"
        f"{measured.reserved_gb:9.2f}{f'  x {mine / tokens:.2f}' if mine == mine else ''}",
        flush=True,
    )


@torch.no_grad()
def apart(context: Context) -> None:
    """Print whether transformers keeps documents of a packed row apart by their positions alone."""
    small = Context(context.device, tiny=True, ends=context.ends)
    model = llama(small).float().eval()
    documents = data(small, "instructions")[:3]
    together = model(**{k: v for k, v in end_to_end(documents, small.device).items() if k != "labels"}).logits
    last = torch.from_numpy(documents[-1][0].astype(np.int64))[None].to(context.device)
    difference = (together[:, -last.size(1) :] - model(last).logits).abs().max().item()
    said = "kept apart" if difference < 1e-3 else "MIXED"
    print(f"  transformers, documents packed by position_ids: {said}, logits {difference:.1e} off those of each alone")


def litgpt(context: Context) -> None:
    """Micro-batches of 4 padded to the longest, and the loss read after each, as its finetune/lora.py does.

    Raises:
        Skip: litgpt is not installed.
    """
    try:
        from litgpt.lora import (  # pyright: ignore[reportMissingImports] measured where it is installed
            GPT,
            Config,
            mark_only_lora_as_trainable,
        )
        from litgpt.utils import chunked_cross_entropy  # pyright: ignore[reportMissingImports] as above
    except ImportError as e:
        raise Skip(f"{e}; pip install --no-deps litgpt==0.5.13, or its wheel on PYTHONPATH") from e
    c = context.config
    toy = {"n_layer": c.n_layer, "n_head": c.n_head, "n_embd": c.n_embd, "intermediate_size": c.intermediate_size}
    toy |= {"vocab_size": c.vocab_size, "padded_vocab_size": c.padded_vocab_size, "n_query_groups": c.n_query_groups}
    lora = {"lora_r": 8, "lora_alpha": 16, "lora_dropout": 0.05, "lora_query": True, "lora_value": True}
    torch.set_default_dtype(torch.bfloat16)
    with torch.device(context.device):
        model = GPT(Config.from_name("Llama-2-7b-hf", **lora, **(toy if context.tiny else {})))
    torch.set_default_dtype(torch.float32)
    mark_only_lora_as_trainable(model)
    documents = data(context, "instructions")
    batches = padded(documents, 4, context.device)
    model.max_seq_length = max(rows["input_ids"].size(1) for rows in batches)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=3e-4, weight_decay=0.01)

    def step(batches: Sequence[Rows] = batches) -> None:
        for rows in batches:
            logits = model(rows["input_ids"], lm_head_chunk_size=128)
            logits[-1] = logits[-1][..., :-1, :]
            loss = chunked_cross_entropy(logits, rows["labels"][..., 1:])
            (loss / len(batches)).backward()
            loss.item()
        optimizer.step()
        optimizer.zero_grad()

    step(batches[:2])
    measured = measure(step, context.device, context.repeats, warmup=0)
    report(
        context,
        f"litgpt {version_of('litgpt')}, its recipe, padded by 4",
        key="litgpt",
        name="instructions",
        documents=documents,
        measured=measured,
    )
