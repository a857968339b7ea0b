# SPDX-License-Identifier: GPL-3.0-or-later
"""Real Multi-User clients for the trials of a deployed server: tests/support/driver.py, told what to do in JSON lines."""
import json
import queue
import subprocess
import threading

from common import DEADLINE, ROOT, wait_until

PYTHON = ROOT / "target/clients/replication-0.9.10-deepdiff-8.1.1/bin/python"
ACTIVE, LOBBY = 2, 10


class Client:
    """One artist."""

    def __init__(self, name, port, **login):
        self.name, self.requests, self.exit = name, 0, None
        self.process = subprocess.Popen([PYTHON, ROOT / "tests/support/driver.py"], stdin=subprocess.PIPE,
                                        stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        self.answers = queue.Queue()
        threading.Thread(target=self.listen, daemon=True).start()
        self("connect", name=name, port=port, **login)

    def listen(self):
        for line in self.process.stdout:
            message = json.loads(line)
            if message.get("event") == "exit":
                self.exit = message["reason"]
            elif "id" in message:
                self.answers.put(message)

    def __call__(self, command, **arguments):
        self.requests += 1
        self.process.stdin.write(json.dumps({"id": self.requests, "cmd": command, "args": arguments}) + "\n")
        self.process.stdin.flush()
        answer = self.answers.get(timeout=DEADLINE)
        if "error" in answer:
            raise AssertionError(f"{self.name}: {command}: {answer['error']}")
        return answer["result"]

    def await_state(self, state):
        def there():
            if self.exit is not None:
                raise AssertionError(f"{self.name} is out: {self.exit}")
            return self("status")["state"] == state
        wait_until(f"{self.name} to be in state {state}", there)
        return self

    def await_value(self, node, code, value):
        def there():
            try:
                return self("get", ref=node, code=code) == value
            except AssertionError:
                return False
        wait_until(f"{self.name} to see {node}: {code} == {value}", there)

    def await_exit(self):
        return wait_until(f"{self.name} to be out", lambda: self.exit)

    def end(self):
        self.process.kill()
        self.process.wait()


def host(port, password, objects=("Cube", "Cone"), **login):
    """Logs in as an administrator and shares a scene."""
    client = Client("Alice", port, admin_password=password, **login).await_state(LOBBY)
    client("init", objects=objects)
    return client.await_state(ACTIVE)


def join(name, port, **login):
    return Client(name, port, **login).await_state(ACTIVE)
