"""Parses the conversation trees of OpenAssistant's export (https://huggingface.co/datasets/OpenAssistant/oasst1)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lit_gpt.data.prepare.conversations import SPEAKERS
from lit_gpt.data.prepare.rows import Row, conversation
from lit_gpt.data.prepare.values import listed, require_object, text, unused_keys
from lit_gpt.errors import UserError
from lit_gpt.prompts.turns import Turn


@dataclass(frozen=True)
class Trees:
    """The schema of conversation trees: one row for each path from the root, a `Parse` when called.

    Messages that were deleted or refused in review are left out. A path ends with an answer.
    """

    paths: str = "best"
    """Paths to take: best follows the best-ranked reply of each message, all follows every reply."""
    language: str | None = None
    """Language of the trees to take (`en`, `de` ...); None takes all."""

    def __call__(self, entry: Any, file: str, location: str) -> list[Row]:
        where = f"{file}, {location}"
        require_object(entry, where, ("prompt",))
        root = require_object(entry["prompt"], f"{where}, prompt", ("text", "role"))
        if self.language is not None and root.get("lang") != self.language:
            return []
        keys = ("text", "role", "lang", "replies", "rank", "deleted", "review_result")
        unused = (*unused_keys(entry, ("prompt",)), *unused_keys(root, keys, "prompt."))
        rows = {}
        for path in self.walk(root, f"{where}, prompt"):
            while path and path[-1].role == "user":
                path = path[:-1]
            if path:
                row = conversation(path, file, location, unused=unused)
                rows[row] = None  # two questions without answers leave the same path
        return list(rows)

    def walk(self, node: dict[str, Any], where: str) -> Iterator[tuple[Turn, ...]]:
        """Yields the turns of each path from this node down to a leaf."""
        require_object(node, where, ("text", "role"))
        role = SPEAKERS.get(node["role"]) if isinstance(node["role"], str) else None
        if role not in ("user", "assistant"):
            raise UserError(f"{where}: 'role' must be prompter or assistant, found {node['role']!r}")
        if node.get("deleted") or node.get("review_result") is False:
            return
        turn = Turn(role, text(node["text"], where, "text"))  # type: ignore[arg-type]
        replies = listed(node.get("replies") or [], where, "replies")
        for i, reply in enumerate(replies):
            require_object(reply, f"{where}.replies[{i}]", ("text", "role"))
        if self.paths == "best":
            replies = sorted(replies, key=lambda r: r["rank"] if isinstance(r.get("rank"), int) else len(replies))
        ended = True
        for i, reply in enumerate(replies):
            for path in self.walk(reply, f"{where}.replies[{i}]"):
                ended = False
                yield (turn, *path)
            if self.paths == "best" and not ended:
                return
        if ended:
            yield (turn,)
