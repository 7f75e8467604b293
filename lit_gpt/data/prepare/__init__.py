"""From a file of rows to a prepared data set: entries, rows, split, tokens."""
