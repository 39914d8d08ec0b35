"""Tasks: the benchmark's data sets, the built-in ones, and people's own files, all as `Task` values."""
