"""Scores from EleutherAI's lm-eval: our model as its `LM` (`harness`), the tasks (`tasks`), the evaluation (`run`)."""
