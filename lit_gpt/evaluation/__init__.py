"""Scores from lm-eval: our model as its LM (`harness`, `scoring`), its `tasks`, their `local_data`, and the `run`."""
