"""Local files in place of the data of lm-eval's tasks: where they are used, and what makes them."""
