#!/usr/bin/env bash
# crfm-helm 0.5.16, a model deployment whose client is helm.clients.vllm_client.VLLMClient, for a server with OpenAI's
# endpoints.
#
# One would guess that the client made for vLLM's server can be used with one: its file says so, and its maintainers name
# it as the way to a model of one's own.
# What happens: it hands its tokenizer on to a parent class that takes none, which hands it on to `OpenAI(...)`, so every
# request fails with "unexpected keyword argument 'tokenizer'". The parent, OpenAILegacyCompletionsClient, is made, and
# asks the same endpoint. HELM shows neither before the run: a deployment's client is made with its first request.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
pip="$work/venv/bin/pip"
"$pip" install -q --disable-pip-version-check torch==2.13.0
"$pip" install -q --disable-pip-version-check torch==2.13.0 torchvision==0.28.0 crfm-helm==0.5.16 openai==3.57.0
"$work/venv/bin/python" - <<'PY'
from importlib.metadata import version

from helm.clients.openai_client import OpenAILegacyCompletionsClient
from helm.clients.vllm_client import VLLMClient
from helm.common.cache import BlackHoleCacheConfig

base_url = "http://127.0.0.1:8000/v1"
OpenAILegacyCompletionsClient(BlackHoleCacheConfig(), api_key="EMPTY", base_url=base_url, openai_model_name="mine")
try:
    VLLMClient(object(), "neurips/local", BlackHoleCacheConfig(), base_url=base_url)
except TypeError as e:
    print(f"crfm-helm {version('crfm-helm')}, openai {version('openai')}: VLLMClient: {e}; its parent class is made")
else:
    raise SystemExit("VLLMClient is made: this is mended")
PY
