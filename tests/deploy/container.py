# SPDX-License-Identifier: GPL-3.0-or-later
"""The image and docker-compose.yml on a real Docker engine, with real clients. Run by tests/deploy/run.

Usage: container.py DIRECTORY, which is made for the project; DOCKER_HOST names the engine, IMAGE `blender-multiuser` is built.
"""
import json
import os
import pathlib
import pty
import re
import select
import shutil
import signal
import subprocess
import sys
import time

from clients import Client, host, join
from common import ROOT, free_ports, inspect as inspect_any, run, story, wait_until

NAME, IMAGE = "blender-multiuser-server", "blender-multiuser"
PROJECT = pathlib.Path(sys.argv[1]).resolve()
COMPOSE = os.environ.get("COMPOSE", "docker-compose").split()
# As in the compose file, but looking every second: red and green take seconds instead of a minute.
QUICK = """
services:
  blender-collab-server:
    healthcheck:
      interval: 1s
      timeout: 5s
      retries: 2
      start_period: 0s
"""


def compose(*arguments):
    return run(*COMPOSE, "-f", "docker-compose.yml", "-f", "quick.yml", *arguments, cwd=PROJECT)


def inspect(template):
    return inspect_any(template, NAME)


def logs():
    return run("docker", "logs", NAME)


def await_health(state):
    wait_until(f"the container to be {state}", lambda: inspect("{{.State.Health.Status}}") == state)


def control(*words):
    return run("docker", "exec", NAME, "blender-multiuser", "ctl", *words)


class Attached:
    """`docker attach` in a terminal of its own."""

    def __init__(self):
        self.seen = b""
        self.pid, self.terminal = pty.fork()
        if self.pid == 0:
            os.execvp("docker", ["docker", "attach", NAME])

    def read(self):
        if select.select([self.terminal], [], [], 0.2)[0]:
            try:
                self.seen += os.read(self.terminal, 65536)
            except OSError:  # the other end is closed
                pass
        return self.seen.decode(errors="replace")

    def type(self, text):
        self.seen = b""
        os.write(self.terminal, text.encode())

    def await_text(self, pattern):
        return wait_until(f"{pattern} on the console", lambda: re.search(pattern, self.read(), re.DOTALL))

    def await_end(self):
        def ended():
            self.read()
            return os.waitpid(self.pid, os.WNOHANG)[0]
        wait_until("docker attach to end", ended)


# --- the stories, in order: each goes on where the one before has ended ---------------------------------


def the_image_is_small_and_holds_nothing_else():
    about = json.loads(run("docker", "image", "inspect", IMAGE))[0]
    size, config = about["Size"], about["Config"]
    assert size < 20_000_000, size
    assert config["User"] == "10001:10001", config["User"]
    assert config["Entrypoint"] == ["blender-multiuser"], config["Entrypoint"]
    assert config["Healthcheck"]["Test"] == ["CMD", "blender-multiuser", "health"]
    assert set(config["ExposedPorts"]) == {f"{port}/tcp" for port in range(5555, 5559)}
    assert "blender-multiuser " in run("docker", "run", "--rm", IMAGE, "--version")
    container = run("docker", "create", IMAGE).strip()
    files = subprocess.run(f"docker export {container} | tar -t", shell=True, capture_output=True, text=True).stdout.split()
    run("docker", "rm", "-v", container)
    # Docker makes the mount points of its own.
    own = {name for name in files if not name.startswith(("dev/", "etc/", "proc/", "sys/", ".dockerenv"))}
    assert own == {"LICENSE", "data/", "usr/", "usr/local/", "usr/local/bin/", "usr/local/bin/blender-multiuser"}, own
    print(f"   {size / 1e6:.1f} MB")


def every_setting_can_be_set():
    settings = set(re.findall(r"\[env: (\w+)", run("docker", "run", "--rm", IMAGE, "--help")))
    assert "ADMIN_PASSWORD" in settings, settings
    passed_on = set(re.findall(r"^      - ([A-Z_]+)$", (PROJECT / "docker-compose.yml").read_text(), re.MULTILINE)) - {"ALL"}
    # In the container the ports, the addresses and the directory stay; outside the compose file has them.
    assert passed_on == settings - {"PORT", "BIND", "DATA_DIR"}, passed_on ^ settings
    shown = set(re.findall(r"^#?([A-Z_]+)=", (ROOT / ".env.example").read_text(), re.MULTILINE))
    assert shown == settings | {"LAST_PORT"}, shown ^ settings


def a_data_directory_of_root_is_told_in_one_line():
    (PROJECT / "data").mkdir(mode=0o755)
    compose("up", "-d", "--no-build")
    def complaint():
        return re.search(r"^error: .*", logs(), re.MULTILINE)
    line = wait_until("the server to complain", complaint).group(0)
    assert "/data" in line and "10001" in line, line
    assert "chown" in line, line
    shutil.chown(PROJECT / "data", 10001, 10001)
    # Docker goes on trying.
    await_health("healthy")


def two_clients_join_without_a_server_password():
    settings = json.loads(run("docker", "inspect", NAME))[0]
    assert "SERVER_PASSWORD=" in settings["Config"]["Env"]
    assert settings["HostConfig"]["ReadonlyRootfs"] and settings["HostConfig"]["CapDrop"] == ["ALL"]
    password = (PROJECT / "data/admin_password").read_text().strip()
    assert password in logs()
    alice, bob = host(PORT, password), join("Bob", PORT)
    bob("edit", ref="World", code="d['stamp'] = 1")
    alice.await_value("World", "d['stamp']", 1)
    return alice, bob


def attach_is_the_console_and_leaving_it_leaves_the_server(alice, bob):
    started = inspect("{{.State.StartedAt}}")
    console = Attached()
    console.type("\r")
    console.await_text(">")
    console.type("users\r")
    console.await_text("Alice.*Bob|Bob.*Alice")
    console.type("\x10\x11")  # Ctrl+P Ctrl+Q
    console.await_end()
    # A terminal window that is just closed.
    console = Attached()
    console.type("status\r")
    console.await_text("uptime|Uptime")
    os.kill(console.pid, signal.SIGHUP)
    console.await_end()
    assert inspect("{{.State.StartedAt}}") == started
    alice("edit", ref="World", code="d['stamp'] = 2")
    bob.await_value("World", "d['stamp']", 2)


def ctl_commands_the_server(alice, bob):
    users = control("users")
    assert "Alice" in users and "Bob" in users, users
    control("kick", "Bob")
    bob.await_exit()
    alice.await_state(2)


def a_server_that_hangs_is_red():
    await_health("healthy")
    pid = int(inspect("{{.State.Pid}}"))
    os.kill(pid, signal.SIGSTOP)
    try:
        await_health("unhealthy")
    finally:
        os.kill(pid, signal.SIGCONT)
    await_health("healthy")


def the_scene_is_there(value):
    carol = join("Carol", PORT)
    carol.await_value("World", "d['stamp']", value)
    assert carol("node", ref="Object:Cone")["data"]
    carol.end()


def stop_keeps_everything_and_says_so_with_0(alice):
    dora = join("Dora", PORT)
    # What somebody has seen is not lost, though nobody has waited for it to be saved.
    alice("edit", ref="World", code="d['stamp'] = 3")
    dora.await_value("World", "d['stamp']", 3)
    before = time.monotonic()
    run("docker", "stop", NAME)
    print(f"   {time.monotonic() - before:.1f} s")
    assert inspect("{{.State.ExitCode}} {{.State.OOMKilled}} {{.State.Running}}") == "0 false false"
    dora.end()
    run("docker", "start", NAME)
    await_health("healthy")
    the_scene_is_there(3)


def an_update_keeps_the_session():
    before = inspect("{{.Id}}")
    password = (PROJECT / "data/admin_password").read_text()
    run("docker", "build", "-q", "--label", "version=next", "-t", IMAGE, "-", input=f"FROM {IMAGE}\n")
    compose("up", "-d", "--no-build")
    assert inspect("{{.Id}}") != before
    assert inspect('{{index .Config.Labels "version"}}') == "next"
    await_health("healthy")
    assert (PROJECT / "data/admin_password").read_text() == password
    the_scene_is_there(3)


def exit_on_the_console_starts_it_anew():
    started = inspect("{{.State.StartedAt}}")
    console = Attached()
    console.type("exit\r")
    console.await_end()
    wait_until("a new start", lambda: inspect("{{.State.StartedAt}}") != started)
    await_health("healthy")
    the_scene_is_there(3)


def stopped_means_stopped_and_down_keeps_the_data():
    compose("stop")
    assert inspect("{{.State.Running}} {{.State.ExitCode}}") == "false 0"
    compose("down")
    assert (PROJECT / "data/admin_password").exists() and any((PROJECT / "data/backups").iterdir())


def main():
    PROJECT.mkdir(parents=True)
    shutil.copy(ROOT / "docker-compose.yml", PROJECT)
    (PROJECT / "quick.yml").write_text(QUICK)
    (PROJECT / ".env").write_text(f"PORT={PORT}\nLAST_PORT={PORT + 3}\nSERVER_PASSWORD=\nADMIN_PASSWORD=\nSAVE_INTERVAL=0\n")
    try:
        story(the_image_is_small_and_holds_nothing_else)
        story(every_setting_can_be_set)
        story(a_data_directory_of_root_is_told_in_one_line)
        alice, bob = story(two_clients_join_without_a_server_password)
        story(attach_is_the_console_and_leaving_it_leaves_the_server, alice, bob)
        story(ctl_commands_the_server, alice, bob)
        story(a_server_that_hangs_is_red)
        alice.end()
        alice = Client("Alice", PORT).await_state(2)
        story(stop_keeps_everything_and_says_so_with_0, alice)
        story(an_update_keeps_the_session)
        story(exit_on_the_console_starts_it_anew)
        story(stopped_means_stopped_and_down_keeps_the_data)
    except BaseException:
        print(run("docker", "logs", "--tail", "60", NAME, expect=None), file=sys.stderr)
        raise
    finally:
        run("docker", "rm", "-f", "-v", NAME, expect=None)


PORT = free_ports()
main()
