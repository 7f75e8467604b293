"""The HTTP server: HELM's, OpenAI's and vLLM's endpoints (`app`) over the engine (`service`), and what guards them."""
