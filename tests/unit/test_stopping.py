"""SIGTERM: a second one disturbs nothing, and a Snakemake on a node ends whatever holds it."""

import signal
import subprocess
import sys
import time

TWICE = """
import os, signal, sys
from pipeline.stopping import end_on_sigterm
end_on_sigterm()
try:
    os.kill(os.getpid(), signal.SIGTERM)
finally:
    os.kill(os.getpid(), signal.SIGTERM)
    print("cleaned up", flush=True)
"""
STUCK = """
import signal, subprocess, sys, threading
from pipeline.jobs.node import end_surely_on_sigterm
lock = threading.Lock()
end_surely_on_sigterm(seconds=0.5)
signal.signal(signal.SIGTERM, lambda *_: lock.acquire())  # as Snakemake does it
job = subprocess.Popen(["sh", "-c", "trap 'echo told; exit' TERM; echo begun; while :; do sleep 0.05; done"])
with lock:
    job.wait()
"""


def test_a_second_sigterm_does_not_interrupt_what_the_first_one_began():
    done = subprocess.run([sys.executable, "-c", TWICE], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (128 + signal.SIGTERM, "cleaned up\n")


def test_a_snakemake_on_a_node_ends_though_its_handler_waits_for_ever_and_its_job_is_told():
    with subprocess.Popen([sys.executable, "-c", STUCK], stdout=subprocess.PIPE, text=True) as node:
        assert node.stdout.readline() == "begun\n"
        node.send_signal(signal.SIGTERM)
        begin = time.monotonic()
        assert node.wait(20) == 128 + signal.SIGTERM
        assert time.monotonic() - begin < 10
        assert node.stdout.readline() == "told\n"
