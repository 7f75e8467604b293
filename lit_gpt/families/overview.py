"""The table of families in docs/models.md, made from the families themselves."""

from lit_gpt.families import FAMILIES
from lit_gpt.families.family import Family


def overview() -> str:
    """Returns a Markdown table with a row for each file of this folder that declares a family."""
    head = "| models | from | architecture | what it has |\n|---|---|---|---|\n"
    rows = [f"| {_names(f)} | {f.org} | {f.architecture.hf_class} | {_traits(f)} |" for f in FAMILIES]
    return head + "\n".join(sorted(rows, key=str.lower)) + "\n"


def _names(family: Family) -> str:
    """Returns the names of the first models, and how many more there are."""
    all_names = [m["name"] for m in family.models]
    more = f" and {len(all_names) - 3} more" if len(all_names) > 3 else ""
    return ", ".join(all_names[:3]) + more


def _traits(family: Family) -> str:
    """Returns what sets the family apart, in the field's words."""
    fields = list(family.configs.values())

    def some(test: str) -> bool:
        return any(f.get(test) for f in fields)

    groups = {_heads(f.get("n_head", 0), f.get("n_query_groups", 0)) for f in fields}
    stated = {
        " and ".join(k for k in ("MHA", "GQA", "MQA") if k in groups): True,
        "mixture of experts": any(f.get("mlp") == "moe" for f in fields),
        "parallel residual": all(f.get("parallel_residual", True) for f in fields),
        "partial rotary": any(f.get("rotary_percentage", 0.25) < 1 for f in fields),
        "scaled rotary": some("rope_scaling") or any(f.get("rope_condense_ratio", 1) > 1 for f in fields),
        "two rotary bases": any(f.get("rope_local_base", 0) not in (0, f.get("rope_base")) for f in fields),
        "layers without rotation": some("unrotated_layers"),
        "sliding window": some("sliding_window"),
        "soft caps": some("final_logit_softcapping"),
        "short convolutions": any("conv" in (f.get("mixers") or ()) for f in fields),
        "shared expert": some("shared_expert_size"),
        "Mamba-2": any("mamba2" in (f.get("mixers") or ()) for f in fields),
        "one part a layer": some("mlp_layers"),
        "gated delta rule": any("delta" in (f.get("mixers") or ()) for f in fields),
        "gated attention": some("attention_gate"),
        "attention sinks": some("attention_sinks"),
        "shared keys and values": some("kv_shared_layers"),
        "keys as values": some("keys_as_values"),
        "per-layer embeddings": some("per_layer_input_size"),
        "multipliers": any(f.get("residual_factor", 1) != 1 for f in fields),
        "taken out of a multimodal checkpoint": some("wrapper"),
        "query/key norms": any(f.get("qk_norm", "none") != "none" for f in fields),
        "norms after": some("post_norm"),
        "tied head": some("tie_embeddings"),
    }
    return ", ".join(name for name, has in stated.items() if has)


def _heads(n_head: int, n_query_groups: int) -> str:
    if n_query_groups in (0, n_head):
        return "MHA"
    return "MQA" if n_query_groups == 1 else "GQA"
