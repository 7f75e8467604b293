"""Scores from EleutherAI's lm-eval: our model as its `LM`, and the evaluation (`harness`); tasks and data (`tasks`)."""
