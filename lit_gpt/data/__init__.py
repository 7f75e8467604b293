"""The data pipeline: rows of a file -> tokens on disk (`prepare/`, `store`) -> micro-batches (`packing`, `batches`)."""
