"""What scores of texts are compared with: the plain model's log-probabilities at every position."""

import pytest
import torch

KINDS = (
    "llama-gqa",
    "gemma2",
    "mistral",
    "mixtral",
    "phi3-long",
    "neox",
    "gemma3",
    "gpt-oss",
    "lfm2",
    "qwen3.5",
    "gemma4",
)


def draw_ids(n, seed=0):
    return torch.randint(0, 320, (n,), generator=torch.Generator().manual_seed(seed)).tolist()


@torch.no_grad()
def plain(model, ids):
    """Log-probabilities at every position that is fed when a text is only scored: all but the last."""
    return model(torch.tensor([ids[:-1]]))[0].float().log_softmax(-1)


def assert_scored(scored, ids, logprobs, first, n_top):
    assert [s.id for s in scored] == list(ids[first:])
    for at, s in enumerate(scored, first):
        if at == 0:
            assert s.logprob is None and s.top == ()
            continue
        want = logprobs[at - 1]
        assert s.logprob == pytest.approx(float(want[s.id]), abs=1e-4)
        assert s.is_greedy == (int(want.argmax()) == s.id)
        values = want.topk(n_top).values.tolist() if n_top else []
        assert [v for _, v in s.top] == pytest.approx(values, abs=1e-4)
        assert all(float(want[i]) == pytest.approx(v, abs=1e-4) for i, v in s.top)
