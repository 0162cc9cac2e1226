"""A real SLURM of one node for a test: Debian's slurm-wlm and munge, in a folder and on ports of its own."""

from __future__ import annotations

import contextlib
import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "sinfo")
_PATIENCE = 60.0  # seconds until the node is ready
_SEARCHED = os.pathsep.join([os.environ.get("PATH", ""), "/usr/sbin", "/sbin"])

CONFIGURATION = """\
ClusterName=one
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/socket
SlurmUser=root
SlurmdUser=root
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=16 State=UNKNOWN
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why there can be none here, or None."""
    absent = [name for name in PROGRAMS if _program(name) is None]
    if absent:
        return f"SLURM is not installed: no {', '.join(absent)}"
    return None if os.geteuid() == 0 else "slurmd runs jobs as their users, which takes the superuser"


@contextlib.contextmanager
def slurm() -> Iterator[dict[str, str]]:
    """What the environment needs in which sbatch is called, while the node runs."""
    folder = Path(tempfile.mkdtemp())  # short: the path of a socket has little room
    folder.chmod(0o755)
    for name in ("state", "spool"):
        (folder / name).mkdir()
    (folder / "key").write_bytes(os.urandom(64))
    (folder / "key").chmod(0o600)
    host = socket.gethostname().split(".")[0]
    configuration = folder / "slurm.conf"
    configuration.write_text(CONFIGURATION.format(host=host, folder=folder, ports=_free_ports(2)))
    environment = {"SLURM_CONF": str(configuration)}
    commands = [
        ["munged", "--foreground", "--force", f"--key-file={folder}/key", f"--socket={folder}/socket",
         f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/seed"],
        ["slurmctld", "-D", "-f", str(configuration)],
        ["slurmd", "-D", "-f", str(configuration), "-N", host],
    ]  # fmt: skip
    started: list[subprocess.Popen[bytes]] = []
    with contextlib.ExitStack() as stack:
        logs = [folder / f"{command[0]}.out" for command in commands]
        try:
            for command, log in zip(commands, logs, strict=True):
                out = stack.enter_context(log.open("wb"))
                program = [str(_program(command[0])), *command[1:]]
                started.append(
                    subprocess.Popen(program, stdout=out, stderr=out, env={**os.environ, **environment})
                )
                if command[0] == "munged":
                    _until((folder / "socket").exists, logs)
            _until(lambda: _is_idle(environment), logs)
            yield environment
        finally:
            for process in reversed(started):
                process.terminate()
                process.wait()
            shutil.rmtree(folder, ignore_errors=True)


def _is_idle(environment: dict[str, str]) -> bool:
    told = subprocess.run(
        [str(_program("sinfo")), "--noheader", "--format=%T"], env={**os.environ, **environment},
        capture_output=True, text=True,
    )  # fmt: skip
    return told.stdout.strip() == "idle"


def _until(ready, logs: list[Path]) -> None:
    end = time.monotonic() + _PATIENCE
    while not ready():
        if time.monotonic() > end:
            told = "\n".join(log.read_text(errors="replace")[-2000:] for log in logs if log.exists())
            raise TimeoutError(f"SLURM does not start:\n{told}")
        time.sleep(0.1)


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        probes = [stack.enter_context(socket.socket()) for _ in range(count)]
        for probe in probes:
            probe.bind(("127.0.0.1", 0))
        return [probe.getsockname()[1] for probe in probes]


def _program(name: str) -> str | None:
    return shutil.which(name, path=_SEARCHED)
