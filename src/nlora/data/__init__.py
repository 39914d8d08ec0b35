"""Tasks: the benchmark's data sets, the embedded ones, and people's own files, all as `Task` values.

    from nlora.data import load_tasks
    tasks = load_tasks(load_config("my-run.yaml"))

Importing this package imports neither torch nor transformers.
"""

from nlora.data.load import load_tasks
from nlora.data.task import Example, Task

__all__ = ["Example", "Task", "load_tasks"]
