"""Tasks from the benchmark, the built-in texts and user files, and their tokens in batches."""
