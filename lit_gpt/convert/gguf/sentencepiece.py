"""A tokenizer.model out of its tokens and scores.

The format, a message of protobuf: https://github.com/google/sentencepiece/blob/master/src/sentencepiece_model.proto
"""

import struct
from collections.abc import Mapping, Sequence

BPE = 2
WORDS, VARINT, FLOAT = 2, 0, 5
"""Kinds of fields in protobuf."""
IDS = {"unk": (40, 45), "bos": (41, 46), "eos": (42, 47), "pad": (43, 48)}
"""Role -> fields of the trainer's message for its id and its token."""


def model_proto(
    tokens: Sequence[str],
    scores: Sequence[float],
    kinds: Sequence[int],
    ids: Mapping[str, int | None],
    add_prefix: bool,
) -> bytes:
    """The bytes of a tokenizer.model that merges by score and falls back on bytes.

    Args:
        kinds: of the tokens, numbered as SentencePiece does.
        ids: of the tokens with a role; None where there is none.
        add_prefix: a space is put before each text.
    """
    pieces = b"".join(
        message(1, words(1, token.encode()) + key(2, FLOAT) + struct.pack("<f", score) + number(3, kind))
        for token, score, kind in zip(tokens, scores, kinds, strict=True)
    )
    unknown = [i for i, kind in enumerate(kinds) if kind == 2]
    roles = {**ids, "unk": unknown[0] if unknown else ids.get("unk")}
    trainer = number(3, BPE) + number(4, len(tokens)) + number(35, 1)
    for role, (id_field, token_field) in IDS.items():
        i = roles.get(role)
        if i is not None and i < len(tokens):
            trainer += number(id_field, i) + words(token_field, tokens[i].encode())
        else:
            trainer += number(id_field, -1)
    normalizer = words(1, b"identity") + number(3, int(add_prefix)) + number(4, 0) + number(5, 1)
    return pieces + message(2, trainer) + message(3, normalizer)


def varint(value: int) -> bytes:
    value &= 2**64 - 1  # negative numbers as protobuf has them
    found = bytearray()
    while value > 127:
        found.append(value & 127 | 128)
        value >>= 7
    return bytes([*found, value])


def key(field: int, kind: int) -> bytes:
    return varint(field << 3 | kind)


def number(field: int, value: int) -> bytes:
    return key(field, VARINT) + varint(value)


def words(field: int, content: bytes) -> bytes:
    return key(field, WORDS) + varint(len(content)) + content


message = words
