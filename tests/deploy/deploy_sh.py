# SPDX-License-Identifier: GPL-3.0-or-later
"""deploy.sh on computers of its own: containers of the base image, one with a real systemd. Run by tests/deploy/run.

Usage: deploy_sh.py DIRECTORY, an empty one; DOCKER_HOST names the engine, images `$BASE` and `blender-multiuser` are there.
"""
import os
import pathlib
import re
import shutil
import sys

from clients import host, join
from common import ROOT, free_ports, inspect, run, story, wait_until

PLACE = pathlib.Path(sys.argv[1]).resolve()
BASE = os.environ["BASE"]
COMPUTER = "blender-multiuser-trial-computer"
SERVER = "blender-multiuser-server"
STATE, CONFIG = "/var/lib/blender-multiuser", "/etc/blender-multiuser"
# Commands that a trial must not really run; each notes how it was called.
STUB = '#!/bin/sh\necho "$(basename "$0") $*" >> /var/log/calls\n'
UFW = STUB + 'case $1 in status) echo "Status: active" ;; esac\n'
# A program that can say its version and nothing else, as one built for other libraries or with a fault.
BROKEN = '#!/bin/sh\ncase $1 in --version) echo "blender-multiuser 9.9.9"; exit 0 ;; esac\necho "error: broken" >&2\nexit 1\n'


class Computer:
    """A container that stands in for somebody's rented computer, with this project's files in it."""

    def __init__(self, *options, command):
        run("docker", "rm", "-f", "-v", COMPUTER, expect=None)
        shutil.rmtree(PLACE, ignore_errors=True)
        PLACE.mkdir(parents=True)
        for name in ("deploy.sh", ".env.example", "docker-compose.yml", "blender-multiuser.service"):
            shutil.copy(ROOT / name, PLACE)
        run("docker", "run", "-d", "--name", COMPUTER, "-v", f"{PLACE}:{PLACE}", "-w", PLACE, *options, BASE, *command)

    def __call__(self, *command, expect=0, terminal=False, user="0", env=()):
        options = [word for pair in env for word in ("-e", pair)] + (["-t"] if terminal else [])
        return run("docker", "exec", *options, "-u", user, COMPUTER, *command, expect=expect)

    def deploy(self, *arguments, **options):
        return self("./deploy.sh", *arguments, **options)

    def write(self, path, content, mode="755"):
        run("docker", "exec", "-i", COMPUTER, "sh", "-c", f"cat > {path} && chmod {mode} {path}", input=content)

    def calls(self, name):
        return [line for line in self("cat", "/var/log/calls").splitlines() if line.startswith(name)]

    def files(self):
        """Everything that has changed in it, and what is in the project's directory; but for what a server and systemd write by themselves."""
        listing = self("find", PLACE, "-path", PLACE / "data", "-prune", "-o", "-printf", "%p %s %m %u\\n").splitlines()
        changes = [line for line in run("docker", "diff", COMPUTER).splitlines()
                   if not re.match(r". /var/(lib/(systemd|private|blender-multiuser)|log)", line)]
        return sorted(changes), sorted(listing)

    def end(self):
        run("docker", "rm", "-f", "-v", COMPUTER)


# --- a computer with nothing on it ------------------------------------------------------------------------


def errors_are_clear():
    computer = Computer(command=("sleep", "infinity"))
    before = computer.files()
    assert "as: sudo ./deploy.sh --systemd" in computer.deploy("--systemd", user="1000", expect=1)
    assert "unknown argument --sytemd" in computer.deploy("--sytemd", expect=1)
    assert "Usage:" in computer.deploy("--help")
    assert "no server to update" in computer.deploy("--update", expect=1)
    assert "no server to remove" in computer.deploy("--uninstall", expect=1)
    assert "PORT=77777" in with_settings(computer, "PORT=77777\n")
    assert "PORT=080" in with_settings(computer, "PORT=080\n")
    computer.write("/tmp/arch", 'ID=arch\nPRETTY_NAME="Arch Linux"\n', "644")
    said = computer.deploy(env=("OS_RELEASE=/tmp/arch",), expect=1)
    assert "Arch Linux" in said and "https://docs.docker.com" in said, said
    computer("rm", "/tmp/arch")
    assert computer.files() == before
    # No network: nothing that could be installed can be fetched.
    computer.write("/usr/local/bin/apt-get", "#!/bin/sh\necho 'E: Unable to fetch' >&2\nexit 100\n")
    computer.write("/usr/local/bin/apt-cache", "#!/bin/sh\nexit 0\n")
    said = computer.deploy(expect=1)
    assert "could not be installed" in said and "deb.debian.org c" in said, said
    computer.end()


def with_settings(computer, text):
    computer.write(f"{PLACE}/.env", text, "600")
    try:
        return computer.deploy("--dry-run", env=("OS_RELEASE=/etc/os-release",), expect=1)
    finally:
        computer("rm", f"{PLACE}/.env")


def a_dry_run_changes_nothing_and_says_what_it_would_do():
    computer = Computer(command=("sleep", "infinity"))
    computer.write("/usr/local/bin/apt-cache", "#!/bin/sh\ncase $2 in docker.io|docker-compose) ;; *) exit 1 ;; esac\n")
    computer.write("/usr/local/bin/ufw", UFW)
    computer.write("/tmp/fedora", "ID=fedora\n", "644")
    computer.write("/tmp/ubuntu", 'ID=ubuntu\nID_LIKE=debian\nPRETTY_NAME="Ubuntu"\n', "644")
    computer("touch", "/var/log/calls")
    before = computer.files()
    for release, install in (("/etc/os-release", "apt-get install -y docker.io docker-compose"),
                             ("/tmp/ubuntu", "apt-get install -y docker.io docker-compose"),
                             ("/tmp/fedora", "dnf install -y moby-engine docker-compose")):
        said = computer.deploy("--dry-run", user="1000", env=(f"OS_RELEASE={release}",))
        for expected in (install, "docker build", "would write .env", "chown -RH 10001:10001", "up -d"):
            assert expected in said, (expected, said)
    assert "ufw allow 5555:5558/tcp" in computer.deploy("--dry-run")
    meminfo = "MemTotal: 2000000 kB\nMemAvailable: %d kB\nSwapFree: 512000 kB\n"
    for free, warned in ((307200, True), (2048000, False)):
        computer.write("/tmp/meminfo", meminfo % free, "644")
        said = computer.deploy("--dry-run", env=("MEMINFO=/tmp/meminfo",))
        assert ("only 800 MB" in said) == warned, said
    computer("rm", "/tmp/meminfo")
    computer.write("/usr/local/bin/systemctl", "#!/bin/sh\necho systemd 252\n")
    before = computer.files()
    said = computer.deploy("--dry-run", "--systemd", "--binary", "/bin/true")
    for expected in ("/usr/local/bin/blender-multiuser", "admin_password", "systemctl enable", "daemon-reload"):
        assert expected in said, (expected, said)
    computer.write("/usr/local/bin/systemctl", "#!/bin/sh\necho systemd 241\n")
    assert "241 is too old" in computer.deploy("--dry-run", "--systemd", expect=1)
    computer.write("/usr/local/bin/systemctl", "#!/bin/sh\necho systemd 252\n")
    assert computer.files() == before
    computer.end()


# --- with Docker: the real engine --------------------------------------------------------------------------


def docker_computer():
    tools = ["-v", f"{shutil.which('docker')}:/usr/bin/docker:ro"]
    plugin = pathlib.Path(os.environ.get("DOCKER_CONFIG", "/nowhere")) / "cli-plugins/docker-compose"
    if plugin.exists():
        tools += ["-v", f"{plugin}:/usr/libexec/docker/cli-plugins/docker-compose:ro"]
    else:
        return None
    engine = os.environ["DOCKER_HOST"].removeprefix("unix://")
    computer = Computer("--network", "host", "-v", f"{engine}:/var/run/docker.sock", *tools, command=("sleep", "infinity"))
    # What a checkout has, but for the program itself: that it is built is tried elsewhere.
    (PLACE / "Dockerfile").write_text("FROM blender-multiuser-built\n")
    computer.write("/usr/local/bin/ufw", UFW)
    return computer


def edit(path, old, new):
    text = path.read_text()
    assert old in text, (path, old)
    path.write_text(text.replace(old, new))


def by_docker():
    computer = docker_computer()
    if computer is None:
        print("SKIPPED, NOT TESTED: deploy.sh with Docker: there is no docker compose plugin here")
        return
    run("docker", "tag", "blender-multiuser", "blender-multiuser-built")
    run("docker", "image", "rm", "blender-multiuser")
    try:
        docker_stories(computer)
    finally:
        print_if_failing(run("docker", "logs", "--tail", "30", SERVER, expect=None))
        run("docker", "rm", "-f", "-v", SERVER, expect=None)
        computer.end()
        run("docker", "tag", "blender-multiuser-built", "blender-multiuser")


def print_if_failing(text):
    if sys.exc_info()[0]:
        print(text, file=sys.stderr)


def docker_stories(computer):
    port = free_ports()
    edit(PLACE / ".env.example", "PORT=5555", f"PORT={port}")
    said = computer.deploy()
    settings = (PLACE / ".env").read_text()
    assert (PLACE / ".env").stat().st_mode & 0o777 == 0o600
    assert f"LAST_PORT={port + 3}" in settings
    admin, everybody = (re.search(f"^{name}=(.+)$", settings, re.MULTILINE).group(1) for name in ("ADMIN_PASSWORD", "SERVER_PASSWORD"))
    assert admin not in said and everybody not in said and str(port) in said, said
    assert f"ufw allow {port}:{port + 3}/tcp comment blender-multiuser" in computer.calls("ufw")
    assert inspect("{{.State.Running}}", SERVER) == "true"

    # Once more, now in a terminal: nothing changes, and what to type is shown.
    started = inspect("{{.Id}} {{.State.StartedAt}}", SERVER)
    said = computer.deploy(terminal=True)
    assert admin in said and everybody in said and "Ctrl+P Ctrl+Q" in said, said
    assert inspect("{{.Id}} {{.State.StartedAt}}", SERVER) == started and (PLACE / ".env").read_text() == settings

    images = lambda: sorted(run("docker", "images", "--format", "{{.Repository}}:{{.Tag}} {{.ID}}").splitlines())
    before = [*computer.files(), images()]
    assert "would run: docker build" in computer.deploy("--dry-run", "--update")
    assert "would run: compose down" in computer.deploy("--dry-run", "--uninstall")
    after = [*computer.files(), images()]
    assert after == before, [sorted(set(one) ^ set(other)) for one, other in zip(before, after)]
    assert inspect("{{.Id}} {{.State.StartedAt}}", SERVER) == started

    alice = host(port, admin, server_password=everybody)
    alice("edit", ref="World", code="d['stamp'] = 7")

    # Nothing new, then something new.
    assert "nothing to do" in computer.deploy("--update")
    assert inspect("{{.Id}} {{.State.StartedAt}}", SERVER) == started
    assert not alice.exit
    (PLACE / "Dockerfile").write_text("FROM blender-multiuser-built\nLABEL version=2\n")
    computer.deploy("--update")
    alice.end()
    assert inspect('{{index .Config.Labels "version"}}', SERVER) == "2"
    stamp_is_there(port, everybody, 7)
    assert "an update" in run("docker", "exec", SERVER, "blender-multiuser", "ctl", "backups")

    # An update that was cut off when it had built the new image.
    (PLACE / "Dockerfile").write_text("FROM blender-multiuser-built\nLABEL version=3\n")
    computer("docker", "build", "-t", "blender-multiuser", ".")
    computer.deploy("--update")
    assert inspect('{{index .Config.Labels "version"}}', SERVER) == "3"

    # A version that does not come up.
    (PLACE / "Dockerfile").write_text('FROM blender-multiuser-built\nENTRYPOINT ["blender-multiuser", "--grace", "never"]\n')
    said = computer.deploy("--update", expect=1, env=("PATIENCE=20",))
    assert "the old version runs again" in said, said
    assert inspect('{{index .Config.Labels "version"}}', SERVER) == "3"
    stamp_is_there(port, everybody, 7)
    # One that cannot even be built.
    started = inspect("{{.Id}} {{.State.StartedAt}}", SERVER)
    (PLACE / "Dockerfile").write_text("FROM scratch\nCOPY no-such-file /\n")
    assert "the old one runs on" in computer.deploy("--update", expect=1)
    assert inspect("{{.Id}} {{.State.StartedAt}}", SERVER) == started

    said = computer.deploy("--uninstall")
    assert f"{PLACE}/data" in said
    assert any((PLACE / "data/backups").iterdir()) and (PLACE / ".env").exists()
    assert SERVER not in run("docker", "ps", "-a")
    assert f"ufw delete allow {port}:{port + 3}/tcp" in computer.calls("ufw")

    # Somebody else has the ports meanwhile.
    run("docker", "run", "-d", "--name", SERVER + "-other", "--network", "host", "-e", f"PORT={port}", "blender-multiuser-built")
    try:
        wait_until("the other one to listen", lambda: "Ports:" in run("docker", "logs", SERVER + "-other"))
        said = computer.deploy(expect=1)
        assert f"port {port} is in use" in said and "PORT=" in said, said
    finally:
        run("docker", "rm", "-f", "-v", SERVER + "-other")


def stamp_is_there(port, password, stamp, address="127.0.0.1"):
    client = join("Carol", port, server_password=password, address=address)
    client.await_value("World", "d['stamp']", stamp)
    client.end()


# --- with systemd -------------------------------------------------------------------------------------------


def systemd_computer():
    # Mounts are shared as on a whole computer: that is how systemd hands a service its credentials.
    computer = Computer("--cap-add", "SYS_ADMIN", "--cap-add", "SYS_PTRACE", "--security-opt", "seccomp=unconfined", "--security-opt",
                        "apparmor=unconfined", "--security-opt", "systempaths=unconfined", "--tmpfs", "/run", "--tmpfs", "/tmp", "-v",
                        "/sys/fs/cgroup:/sys/fs/cgroup:rw", "-e", "container=docker", command=("sh", "-c", "mount --make-rshared / && exec /lib/systemd/systemd"))
    try:
        wait_until("systemd to be up", lambda: computer("systemctl", "is-system-running", expect=None).strip() in
                   ("running", "degraded"), deadline=20)
    except AssertionError:
        print(run("docker", "logs", COMPUTER))
        computer.end()
        return None
    container = run("docker", "create", "blender-multiuser").strip()
    run("docker", "cp", f"{container}:/usr/local/bin/blender-multiuser", PLACE)
    run("docker", "rm", "-v", container)
    computer.write("/usr/local/bin/ufw", UFW)
    return computer


def by_systemd():
    computer = systemd_computer()
    if computer is None:
        print("SKIPPED, NOT TESTED: deploy.sh --systemd: no systemd can be started in a container of this engine")
        return
    try:
        systemd_stories(computer)
    finally:
        if sys.exc_info()[0]:
            print(computer("journalctl", "-u", "blender-multiuser", "-n", "60", "--no-pager", expect=None), file=sys.stderr)
        computer.end()


def systemd_stories(computer):
    address = inspect("{{.NetworkSettings.IPAddress}}", COMPUTER)
    show = lambda name: computer("systemctl", "show", "-P", name, "blender-multiuser").strip()

    said = computer.deploy("--systemd")
    admin, everybody = (computer("cat", f"{CONFIG}/{name}_password").strip() for name in ("admin", "server"))
    assert admin and everybody and admin not in said and everybody not in said, said
    assert show("ActiveState") == "active"
    assert computer("stat", "-c", "%a %U", CONFIG, f"{CONFIG}/admin_password").split("\n")[:2] == ["700 root", "600 root"]
    assert "ufw allow 5555:5558/tcp comment blender-multiuser" in computer.calls("ufw")

    started = show("MainPID")
    said = computer.deploy("--systemd", terminal=True)
    assert admin in said and everybody in said and "5555" in said, said
    assert show("MainPID") == started and computer("cat", f"{CONFIG}/admin_password").strip() == admin

    alice = host(5555, admin, server_password=everybody, address=address)
    bob = join("Bob", 5555, server_password=everybody, address=address)
    alice("edit", ref="World", code="d['stamp'] = 7")
    bob.await_value("World", "d['stamp']", 7)
    control = lambda *words, **options: computer("blender-multiuser", "ctl", *words, **options)
    users = control("users")
    assert "Alice" in users and "Bob" in users, users
    control("users", user="1000", expect=1)
    level = re.search(r"exposure level .*: ([0-9.]+)", computer("systemd-analyze", "security", "--no-pager", "blender-multiuser"))
    assert float(level.group(1)) < 2.0, level.group(0)
    print(f"   {level.group(0)}")
    alice.end()
    bob.end()

    story(a_server_that_dies_or_hangs_is_started_anew, computer, show)
    stamp_is_there(5555, everybody, 7, address)
    story(what_root_leaves_there_becomes_the_servers, computer)
    stamp_is_there(5555, everybody, 7, address)

    assert "nothing to do" in computer.deploy("--update")
    with open(PLACE / "blender-multiuser", "ab") as program:
        program.write(b"\n")  # another file, the same program
    computer.deploy("--update")
    stamp_is_there(5555, everybody, 7, address)
    assert "an update" in control("backups")

    computer.write("/root/broken", BROKEN)
    said = computer.deploy("--systemd", "--update", "--binary", "/root/broken", env=("PATIENCE=20",), expect=1)
    assert "the old version runs again" in said and "error: broken" in said, said
    assert show("ActiveState") == "active"
    stamp_is_there(5555, everybody, 7, address)

    before = computer.files()
    assert "would run: systemctl disable" in computer.deploy("--dry-run", "--uninstall")
    assert "would run: systemctl stop" in computer.deploy("--dry-run", "--systemd", "--update", "--binary", "/root/broken")
    assert computer.files() == before
    assert show("ActiveState") == "active"

    control("exit")
    wait_until("the service to be stopped", lambda: show("ActiveState") == "inactive")
    assert show("ExecMainStatus") == "0" and show("Result") == "success"
    said = computer.deploy("--uninstall")
    assert STATE in said and CONFIG in said, said
    assert computer("sh", "-c", f"ls {STATE}/backups/*.db")
    computer("test", "-e", "/usr/local/bin/blender-multiuser", expect=1)
    assert "ufw delete allow 5555:5558/tcp" in computer.calls("ufw")
    # It comes back into the same session.
    computer.deploy("--systemd")
    assert computer("cat", f"{CONFIG}/admin_password").strip() == admin
    stamp_is_there(5555, everybody, 7, address)


def a_server_that_dies_or_hangs_is_started_anew(computer, show):
    computer("mkdir", "-p", "/run/systemd/system/blender-multiuser.service.d")
    computer.write("/run/systemd/system/blender-multiuser.service.d/quick.conf", "[Service]\nWatchdogSec=2s\nRestartSec=100ms\n", "644")
    computer("systemctl", "daemon-reload")
    computer("systemctl", "restart", "blender-multiuser")
    for number, sent in enumerate(("KILL", "STOP"), 1):
        process = show("MainPID")
        computer("kill", f"-{sent}", process)
        wait_until(f"a new start after SIG{sent}", lambda: show("NRestarts") == str(number) and show("ActiveState") == "active")
        assert show("MainPID") != process


def what_root_leaves_there_becomes_the_servers(computer):
    computer("systemctl", "stop", "blender-multiuser")
    computer("sh", "-c", f"""umask 077 && blender-multiuser --data-dir {STATE} export /root/scene.db &&
        cp "$(ls {STATE}/backups/*.db | tail -n 1)" {STATE}/session_restore.db""")
    assert computer("find", f"{STATE}/", "-uid", "0")
    computer("systemctl", "start", "blender-multiuser")
    assert computer("find", f"{STATE}/", "-uid", "0") == ""
    assert "session_restore.db.restored" in computer("ls", f"{STATE}/")
    said = computer("journalctl", "-u", "blender-multiuser", "--no-pager")
    assert "Permission denied" not in said, said


def main():
    try:
        story(errors_are_clear)
        story(a_dry_run_changes_nothing_and_says_what_it_would_do)
        story(by_docker)
        story(by_systemd)
    finally:
        run("docker", "rm", "-f", "-v", COMPUTER, expect=None)


main()
