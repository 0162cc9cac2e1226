"""The `toykern` command: run an experiment, train a phase diagram, merge or explore sweeps, tell versions.

Exit status: 0 done; 2 the command line, its paths or the machine cannot be used (one line says why); 130
stopped by Ctrl-C (what had been finished by then is saved, and a line says how to go on).
"""

from toykern.cli.command_line import main

__all__ = ["main"]
