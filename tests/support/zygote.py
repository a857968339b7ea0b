# SPDX-License-Identifier: GPL-3.0-or-later
"""Imports what clients need once, then forks a client per request: that costs a millisecond, an import a fifth of a second.

Called as `zygote.py SOCKET DRIVER [MODULE...]`: listens there, imports the modules, and for every three connections (control,
the client's stdin and stdout, its stderr) starts one client that runs `DRIVER.main()` in a process group of its own. Control is
told its pid, and when it has ended. Clients get their TTL processes here, too. Ends with its own stdin.
"""
import importlib
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import threading
import traceback


class Popen(subprocess.Popen):
    """Runs the library's TTL script in a process of its own like any other, only without the start of a Python."""

    line = None

    def __init__(self, arguments, *rest, **options):
        if os.path.basename(arguments[1]) != "ttl.py":
            super().__init__(arguments, *rest, **options)
            return
        self.returncode = None
        self.line = socket.socket(socket.AF_UNIX)
        self.line.connect(ttl_path)
        socket.send_fds(self.line, [json.dumps([os.getpgid(0), arguments[1:]]).encode()], [1, 2])
        self.pid = int(self.line.recv(32))

    def poll(self):
        if self.line is None:
            return super().poll()
        if self.returncode is None and select.select([self.line], [], [], 0)[0]:
            self.returncode = 0
        return self.returncode

    def kill(self):
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)


def fork(files, group, main):
    """The pid of a new process in this group (0: its own), with these files as its first, that runs `main` and ends."""
    pid = os.fork()
    if pid:
        return pid
    status = 0
    try:
        os.setpgid(0, group)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        for target, file in enumerate(files):
            os.dup2(file, target)
        os.closerange(3, 4096)
        main()
        for thread in threading.enumerate():
            if thread is not threading.current_thread() and not thread.daemon:
                thread.join()
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    finally:
        sys.stdout.flush()
        os._exit(status)


def new_client():
    control, standard, errors = (listener.accept()[0] for _ in range(3))
    with standard, errors:
        files = [standard.fileno(), standard.fileno(), errors.fileno()]
        pid = fork(files, 0, lambda: importlib.import_module(driver).main())
    return pid, control


def new_heartbeat():
    control = ttl_listener.accept()[0]
    request, files, _, _ = socket.recv_fds(control, 4096, 2)
    if not request:
        return None, control  # whoever asked has been killed
    group, arguments = json.loads(request)

    def main():
        sys.argv = arguments
        runpy.run_path(arguments[0], run_name="__main__")
    pid = fork([nothing, *files], group, main)
    for file in files:
        os.close(file)
    return pid, control


def tell(control, text):
    try:
        control.sendall(text.encode())
    except OSError:
        pass  # nobody waits for it


def main():
    controls = {}
    ended, wakeup = socket.socketpair()
    for end in (ended, wakeup):
        end.setblocking(False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wakeup.fileno(), warn_on_full_buffer=False)
    while True:
        ready, _, _ = select.select([0, ended, listener, ttl_listener], [], [])
        if 0 in ready:
            os.unlink(path)
            os.unlink(ttl_path)
            os.rmdir(os.path.dirname(path))
            os._exit(0)
        if ended in ready:
            ended.recv(4096)
            while controls:
                pid, status = os.waitpid(-1, os.WNOHANG)
                if pid == 0:
                    break
                with controls.pop(pid) as control:
                    tell(control, f"ended {status}\n")
        for source, new in ((listener, new_client), (ttl_listener, new_heartbeat)):
            if source in ready:
                pid, control = new()
                if pid is not None:
                    controls[pid] = control
                    tell(control, f"{pid}\n")


path, driver, *modules = sys.argv[1:]
ttl_path = path + ".ttl"
nothing = os.open(os.devnull, os.O_RDONLY)
subprocess.Popen = Popen
listener, ttl_listener = socket.socket(socket.AF_UNIX), socket.socket(socket.AF_UNIX)
for socket_, place in ((ttl_listener, ttl_path), (listener, path)):
    socket_.bind(place)
    socket_.listen(64)
print("listening", flush=True)
# What is imported must have made no ZeroMQ context: that would not work in a fork.
for module in modules:
    importlib.import_module(module)
main()
