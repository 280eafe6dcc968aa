"""A real SLURM on this machine for tests: slurmctld and several slurmd on loopback, everything below one folder, ended by pid.

Only the nodes' CPU count and memory are invented. Needs the Debian packages slurmctld, slurmd, slurm-client and munge; no root, no systemd.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo")
SBIN = "/usr/sbin"

CONF = """\
ClusterName=lab
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
SlurmUser={user}
SlurmdUser={user}
AuthType=auth/munge
AuthInfo=socket={folder}/run/munge.socket
SlurmctldPidFile={folder}/run/slurmctld.pid
SlurmdPidFile={folder}/run/slurmd.%n.pid
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd.%n.log
StateSaveLocation={folder}/state/ctld
SlurmdSpoolDir={folder}/state/%n
SwitchType=switch/none
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory,CR_LLN
SlurmdParameters=config_overrides
SchedulerParameters=sched_min_interval=0,batch_sched_delay=0
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/linux
JobAcctGatherFrequency=1
JobAcctGatherParams=OverMemoryKill
MinJobAge=600
KillWait=10
ReturnToService=0
DefMemPerCPU=500
"""
# SLURM knows a job above its memory by looking every second (OverMemoryKill): kernel control groups would need root.
NODE = (
    "NodeName=n{i} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={cpus} CoresPerSocket={cpus} RealMemory={memory} State=UNKNOWN\n"
)


def missing() -> list[str]:
    """The programs that are not installed here."""
    return [name for name in PROGRAMS if not shutil.which(name, path=f"{os.environ['PATH']}:{SBIN}")]


class SlurmLab:
    """``with SlurmLab(folder) as lab``: a cluster of `nodes` nodes of `cpus` CPUs and `memory` MB each."""

    def __init__(self, folder: Path, nodes: int = 2, cpus: int = 2, memory: int = 6000) -> None:
        self.folder, self.nodes = folder, [f"n{i}" for i in range(1, nodes + 1)]
        self._cpus, self._memory = cpus, memory
        self.daemons: list[subprocess.Popen] = []
        # a job step loses SLURM_CONF on its way to srun, so programs of the same names, first in PATH, bring it back
        self.environment = {**os.environ, "PATH": f"{folder}/bin:{os.environ['PATH']}:{SBIN}", "SLURM_CONF": f"{folder}/slurm.conf"}

    def __enter__(self) -> SlurmLab:
        for name in ("bin", "run", "log", "state/ctld", *(f"state/{node}" for node in self.nodes)):
            (self.folder / name).mkdir(parents=True)
        self._write()
        try:
            self._start("munged", "--foreground", "--force", f"--key-file={self.folder}/munge.key", *self._munge_files())
            self._wait(10, "munge", "-S", f"{self.folder}/run/munge.socket", "-n")
            self._start("slurmctld", "-D")
            self._wait(30, "scontrol", "ping")
            for node in self.nodes:
                self._start("slurmd", "-D", "-N", node)
            self._wait(30, "srun", f"--nodes={len(self.nodes)}", "true")
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for daemon in reversed(self.daemons):
            daemon.terminate()
        for daemon in self.daemons:
            try:
                daemon.wait(20)
            except subprocess.TimeoutExpired:
                os.killpg(daemon.pid, signal.SIGKILL)

    def __call__(self, *command: str) -> str:
        """What a command of SLURM prints; raises when it fails."""
        return subprocess.run(command, env=self.environment, check=True, capture_output=True, text=True).stdout

    @contextmanager
    def away(self) -> Iterator[None]:
        """Inside, the controller does not run; afterwards it goes on from its saved state."""
        place, old = next((place, daemon) for place, daemon in enumerate(self.daemons) if "slurmctld" in daemon.args[0])
        old.terminate()
        old.wait(60)
        yield
        self._start("slurmctld", "-D")
        self.daemons[place] = self.daemons.pop()
        self._wait(30, "scontrol", "ping")

    def jobs(self, *states: str) -> dict[str, dict[str, str]]:
        """Job id → name, state, node, comment (the rule and its wildcards), of the jobs that are in one of `states`."""
        listed = self("squeue", "--noheader", "--states", ",".join(states or ("all",)), "--format=%i|%j|%T|%N|%k")
        rows = [line.split("|") for line in listed.splitlines()]
        return {job: dict(zip(("name", "state", "node", "comment"), facts, strict=True)) for job, *facts in rows}

    def _munge_files(self) -> list[str]:
        run = self.folder / "run"
        files = {"socket": run / "munge.socket", "pid-file": run / "munged.pid", "log-file": self.folder / "log/munged.log"}
        return [f"--{name}={path}" for name, path in files.items()] + [f"--seed-file={self.folder}/state/munge.seed"]

    def _write(self) -> None:
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        host, first = socket.gethostname().split(".")[0], _free_ports(1 + len(self.nodes))
        user = subprocess.run(["id", "-un"], check=True, capture_output=True, text=True).stdout.strip()
        text = CONF.format(host=host, port=first, user=user, folder=self.folder)
        for i in range(1, len(self.nodes) + 1):
            text += NODE.format(i=i, host=host, port=first + i, cpus=self._cpus, memory=self._memory)
        (self.folder / "slurm.conf").write_text(f"{text}PartitionName=cpu Nodes=n[1-{len(self.nodes)}] Default=YES State=UP\n")
        for name in ("sbatch", "srun", "squeue", "scancel", "scontrol", "sinfo"):
            program = self.folder / "bin" / name
            program.write_text(f'#!/bin/sh\nSLURM_CONF={self.folder}/slurm.conf exec {shutil.which(name)} "$@"\n')
            program.chmod(0o755)

    def _start(self, program: str, *arguments: str) -> None:
        with open(self.folder / "log" / f"{program}.{len(self.daemons)}.out", "w") as output:
            command = [shutil.which(program, path=self.environment["PATH"]), *arguments]
            streams = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": output}
            self.daemons.append(subprocess.Popen(command, env=self.environment, start_new_session=True, **streams))

    def _wait(self, seconds: float, *command: str) -> None:
        end = time.monotonic() + seconds
        while subprocess.run(command, env=self.environment, capture_output=True, check=False).returncode:
            if time.monotonic() > end:
                logs = "\n".join(f"{log}:\n{log.read_text()[-2000:]}" for log in sorted((self.folder / "log").iterdir()))
                raise TimeoutError(f"{' '.join(command)} does not succeed within {seconds:g} s\n{logs}")
            time.sleep(0.1)


def _free_ports(count: int) -> int:
    """The first of `count` neighbouring ports that nobody listens on."""
    for first in range(16800 + os.getpid() % 1000, 32000, count):
        try:
            for port in range(first, first + count):
                with socket.socket() as probe:
                    probe.bind(("127.0.0.1", port))
        except OSError:
            continue
        return first
    raise OSError("no free ports")
