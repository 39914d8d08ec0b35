"""Makes the server that forks a sweep's runs outlive signals to the sweep (`nlora.sweeps.processes`).

A terminal that closes, `timeout` and Slurm signal a whole process group. The sweep stops its runs in order then, for
which it needs the server; that ends by itself once the sweep has. Importing this is its effect: the server does.
"""

import os
import signal

CHANGED = [
    number
    for name in ("SIGTERM", "SIGHUP", "SIGUSR1")
    if signal.getsignal(number := getattr(signal, name)) == signal.SIG_DFL
]
"""What a forked run has to set back; what was ignored before (by nohup) stays ignored."""

os.setsid()
for number in CHANGED:
    signal.signal(number, signal.SIG_IGN)
