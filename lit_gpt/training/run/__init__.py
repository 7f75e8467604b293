"""What surrounds the training loop: start, time budget, figures, checkpoints of the run, resuming, ending."""
