"""What makes a data set better: the check, the search for evaluation questions, mixtures, augmentation, selection."""
