# SPDX-License-Identifier: GPL-3.0-or-later
"""What the trials of a deployed server share."""
import pathlib
import socket
import subprocess
import time

ROOT = pathlib.Path(__file__).resolve().parents[2]
# For what takes a moment; far longer than it does, since other work may have the processors.
DEADLINE = 90


def wait_until(what, condition, deadline=DEADLINE):
    end = time.monotonic() + deadline
    while True:
        found = condition()
        if found:
            return found
        if time.monotonic() > end:
            raise AssertionError(f"waited {deadline} s for {what}")
        time.sleep(0.2)


def run(*command, expect=0, **options):
    """What the command says, on both outputs. `expect`: the exit code it must have; None for any."""
    done = subprocess.run([str(word) for word in command], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                          **options)
    if expect is not None and done.returncode != expect:
        raise AssertionError(f"{command}: exit code {done.returncode} instead of {expect}\n{done.stdout}")
    return done.stdout


def inspect(template, container):
    return run("docker", "inspect", "-f", template, container).strip()


def free_ports():
    """The first of four ports in a row that were free a moment ago."""
    for first in range(21000, 32000, 4):
        try:
            for port in range(first, first + 4):
                with socket.socket() as probe:
                    probe.bind(("0.0.0.0", port))
            return first
        except OSError:
            continue
    raise AssertionError("no free ports")


def story(test, *arguments):
    print(f"-- {test.__name__.replace('_', ' ')}", flush=True)
    return test(*arguments)
