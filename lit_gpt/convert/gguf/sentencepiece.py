"""Makes a tokenizer.model from its tokens and scores.

The format, a message of protobuf: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

import struct
from collections.abc import Mapping, Sequence

_BPE = 2
_WORDS, _VARINT, _FLOAT = 2, 0, 5
"""Kinds of fields in protobuf."""
_IDS = {"unk": (40, 45), "bos": (41, 46), "eos": (42, 47), "pad": (43, 48)}
"""Fields of the trainer's message for the id and the token of each role."""


def model_proto(
    tokens: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[int],
    ids: Mapping[str, int | None],
    add_prefix: bool,
) -> bytes:
    """Returns the bytes of a tokenizer.model that merges by score and falls back to bytes.

    Args:
        kinds: kind of each token, numbered as in SentencePiece.
        ids: id of the token of each role; None if there is none.
        add_prefix: whether a space is put before each text.
    """
    pieces = b"".join(
        _message(1, _words(1, token.encode()) + _key(2, _FLOAT) + struct.pack("<f", score) + _number(3, kind))
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
    )
    unknown = [i for i, kind in enumerate(kinds) if kind == 2]
    roles = {**ids, "unk": unknown[0] if unknown else ids.get("unk")}
    trainer = _number(3, _BPE) + _number(4, len(tokens)) + _number(35, 1)
    for role, (id_field, token_field) in _IDS.items():
        i = roles.get(role)
        if i is not None and i < len(tokens):
            trainer += _number(id_field, i) + _words(token_field, tokens[i].encode())
        else:
            trainer += _number(id_field, -1)
    normalizer = _words(1, b"identity") + _number(3, int(add_prefix)) + _number(4, 0) + _number(5, 1)
    return pieces + _message(2, trainer) + _message(3, normalizer)


def _varint(value: int) -> bytes:
    value &= 2**64 - 1  # negative numbers are encoded in 64 bits
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def _key(field: int, kind: int) -> bytes:
    return _varint(field << 3 | kind)


def _number(field: int, value: int) -> bytes:
    return _key(field, _VARINT) + _varint(value)


def _words(field: int, content: bytes) -> bytes:
    return _key(field, _WORDS) + _varint(len(content)) + content


_message = _words
