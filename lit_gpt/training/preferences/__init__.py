"""Learning from preferences: losses, the objective made of them, and the log-probabilities of the reference."""
