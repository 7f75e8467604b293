"""The parts of a multimodal checkpoint beside its decoder: left behind on conversion, put back on export."""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lit_gpt.config import Config
from lit_gpt.convert.names import HEAD, stored_names
from lit_gpt.convert.readers import Source, open_source
from lit_gpt.errors import UserError, shown
from lit_gpt.files import Spec


def left_behind(config: Config, specs: Mapping[str, Spec]) -> str:
    """Returns a sentence on the tensors of a checkpoint that are not the decoder's, with their size."""
    read = set(stored_names(specs, config).values())
    others = {name: spec for name, spec in specs.items() if name not in read}
    parts = ", ".join(dict.fromkeys(_part(name) for name in others))
    size = f"{sum(spec.n_bytes for spec in others.values()) / 1e9:.2f} GB"
    return (
        f"Only the language model of {config.wrapper} is converted. Left behind: {len(others)} tensors ({size}) of "
        f"{parts or 'nothing'}; scripts/convert_lit_checkpoint.py puts them back"
    )


def _part(name: str) -> str:
    """Returns the part of the model that a tensor is of, such as vision_tower."""
    return name.removeprefix("model.").split(".")[0]


def open_whole(config: Config, folder: Path | None) -> Source | None:
    """Opens the multimodal checkpoint that a decoder was taken from; None if the folder has no weights.

    Raises:
        UserError: the folder holds a checkpoint of another class.
    """
    if folder is None or not any([*folder.glob("*.safetensors"), *folder.glob("pytorch_model*.bin")]):
        return None
    source = open_source(folder)
    classes = source.hf_config.get("architectures") or []
    if config.wrapper not in classes:
        found = shown(classes[0])[1:-1] if classes else "model without a class"
        raise UserError(
            f"{folder} holds a {found}, and the decoder is of a {config.wrapper}; pass the folder that it came from as "
            "--multimodal_dir"
        )
    return source


class Whole:
    """A multimodal checkpoint whose decoder is replaced by ours.

    Args:
        source: the original.
        config: our decoder.
    """

    def __init__(self, source: Source, config: Config) -> None:
        self.source, self.config = source, config
        self.names = stored_names(source.names, config)
        """Names of a checkpoint of text alone -> those of the original."""
        self.others = [name for name in source.names if name not in set(self.names.values())]

    def stored(self, name: str) -> str:
        """Returns the name in the original of a tensor of the decoder, also of a head that it does not have."""
        inside = any(stored.startswith("language_model.") for stored in self.names.values())
        return self.names.get(name, f"language_model.{name}" if inside and name == HEAD else name)

    def specs(self, decoder: Mapping[str, Spec], dtype: torch.dtype | None) -> dict[str, Spec]:
        """Returns the specs of all tensors, given those of the decoder; see `tensors`."""
        others = {name: self.source.specs[name] for name in self.others}
        others = {
            n: Spec(s.shape, dtype if dtype and s.dtype.is_floating_point else s.dtype) for n, s in others.items()
        }
        return {self.stored(name): spec for name, spec in decoder.items()} | others

    def tensors(
        self, decoder: Callable[[], Iterator[tuple[str, Tensor]]], dtype: torch.dtype | None
    ) -> Iterator[tuple[str, Tensor]]:
        """Yields the decoder's tensors under the original's names, then its others.

        Args:
            dtype: dtype of the written weights; None keeps each one's own.
        """
        for name, x in decoder():
            yield self.stored(name), x
        for name in self.others:
            x = self.source.get(name)
            yield name, x.to(dtype) if dtype and x.is_floating_point() else x

    def hf_config(self) -> dict[str, Any]:
        """Returns the original's config.json, with the decoder's rows of the vocabulary and whether they are tied."""
        hf = dict(self.source.hf_config)
        hf["tie_word_embeddings"] = self.config.tie_embeddings
        hf["text_config"] = {**hf["text_config"], "tie_word_embeddings": self.config.tie_embeddings}
        hf["text_config"]["vocab_size"] = self.config.padded_vocab_size
        return hf
