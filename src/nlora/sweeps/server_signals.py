"""Makes the server that forks a sweep's runs outlive signals to the sweep (`nlora.sweeps.processes`).

A terminal that closes, `timeout` and Slurm signal a whole process group. The sweep stops its runs in order then, for
which it needs the server; that ends by itself once the sweep has. Importing this is its effect: the server does.
"""

import os
import signal

_CHANGED = [
    number
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1")
    if signal.getsignal(number := getattr(signal, name)) == signal.SIG_DFL
]
"""What was ignored before (by nohup) is not in it, and stays ignored."""


def hear_signals() -> None:
    """Set back, in a forked process, what the server does not hear."""
    for number in _CHANGED:
        signal.signal(number, signal.SIG_DFL)


os.setsid()
for number in _CHANGED:
    signal.signal(number, signal.SIG_IGN)
