"""Becomes a command that the system kills (SIGKILL) as soon as the process that started it has ended; on Linux.

    python tether.py PARENT COMMAND...

Without it, a run would go on after its Ray worker or Slurm job was killed, and keep the lock of its folder. PARENT is
the id of the process that starts this one. It runs as a file, for which nothing of nlora has to be imported.
"""

import ctypes
import os
import signal
import sys

_SET_PARENT_DEATH_SIGNAL = 1  # prctl(2); it outlives execv


def main() -> None:
    """Ask for the signal and become the command."""
    parent, *command = sys.argv[1:]
    # Slurm sends it to all processes of a job to announce its end; `nlora.sweeps.node` takes care of that.
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    ctypes.CDLL(None).prctl(_SET_PARENT_DEATH_SIGNAL, signal.SIGKILL)
    if os.getppid() != int(parent):  # it ended before the line above
        sys.exit(1)
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
