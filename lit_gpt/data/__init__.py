"""One pipeline: rows from a file (`sources`) -> tokens on disk (`prepare`, `store`) -> batches (`batches`)."""
