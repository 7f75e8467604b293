"""Training: the loop (`loop`), a step (`step`, `loss`, `gradients`, `optimizer`), and what surrounds them (`run`)."""
