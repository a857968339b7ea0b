# SPDX-License-Identifier: GPL-3.0-or-later
"""Load for benches: many bare dealer-dialect clients in one process, without the library's own cost.

Takes one JSON object as its argument and works in one of four modes:
  host   initialises a scene and keeps it until stdin ends
  join   joins over and over as a real client does, one GET per SET, and prints the seconds each took
  latency  as relay, but one message at a time, and prints how long each took
  relay  initialises, joins receivers, waits for a line on stdin, sends, counts what arrives
"""
import json
import pickle
import sys
import time
import uuid

import zmq

VERSION = "0.9.10"


def dumps(value):
    return pickle.dumps(value, 4)


TYPE = {number: dumps(number) for number in range(1, 15)}


def command(number, owner, data):
    return [TYPE[number], owner.encode(), dumps(data)]


def node_chunks(key, size, version=0):
    data = {"name": f"node {key}", "location": [float(version), 0.0, 0.0], "scale": (1.0, 1.0, 1.0),
            "payload": bytes([version % 256]) * max(size - 250, 0), "type_id": "Object", "uuid": key}
    return [TYPE[2], key.encode(), b"COMMON", dumps([]), dumps(data)]


def commit_chunks(key, size, version):
    """About `size` bytes in all; what a dragged object sends."""
    changes = {"root['location'][0]": {"new_value": version / 64.0}}
    pad = size - len(dumps(changes)) - 80
    if pad > 0:
        changes["root['payload']"] = {"new_value": bytes([version % 256]) * pad}
    return [TYPE[1], key.encode(), dumps([]), dumps({"values_changed": changes})]


class Client:
    def __init__(self, context, port, name, admin=False):
        self.name, self.identity = name, uuid.uuid4().bytes
        self.command, self.data, self.ttl = (self.dealer(context, port + offset) for offset in range(3))
        self.ttl.send(b"INIT")
        self.command.send_multipart(command(9, name, {
            "AUTH_TYPE": "ADMIN" if admin else "CLIENT", "AUTH_ID": name, "S_PWD": None,
            "A_PWD": "admin" if admin else None, "VERSION": VERSION}))
        answer = self.expect(9)
        if "FAILED" in answer:
            raise SystemExit(f"{name}: {answer}")

    def dealer(self, context, port):
        socket = context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, self.identity)
        socket.linger = 0
        socket.connect(f"tcp://127.0.0.1:{port}")
        return socket

    def beat(self):
        while self.ttl.poll(0):
            self.ttl.recv()
            self.ttl.send(b"PONG")

    def expect(self, number, timeout=120.0):
        """The data of the next command of this type; others are dropped, as their tables do not matter here."""
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            self.beat()
            if self.command.poll(200):
                frames = self.command.recv_multipart()
                if frames[0] == TYPE[number]:
                    return pickle.loads(frames[2])
                if frames[0] == TYPE[10]:
                    raise SystemExit(f"{self.name}: disconnected: {pickle.loads(frames[2])}")
        raise SystemExit(f"{self.name}: no message {number} within {timeout} s")

    def initialise(self, keys, size):
        self.command.send_multipart(command(8, "server", {"STATE": "INIT", "SIZE": len(keys), "NODES": list(keys)}))
        assert self.expect(8)["STATE"] == "ACCEPTED"
        for key in keys:
            self.beat()
            self.command.send_multipart(command(8, "server", {"STATE": "SET", "DATA": node_chunks(key, size)}))
        self.command.send_multipart(command(8, "server", {"STATE": "END"}))
        assert self.expect(8)["STATE"] == "DONE"

    def join(self):
        """One GET per SET, from the catalog's end: exactly what a real client does. How many nodes came."""
        self.command.send_multipart(command(7, self.name, {"STATE": "REQUEST_INIT"}))
        catalog = self.expect(7)["CATALOG"]
        count = len(catalog)
        while catalog:
            key = catalog.pop()
            self.command.send_multipart(command(7, self.name, {"STATE": "GET", "ID": key}))
            answer = self.expect(7)
            assert answer["STATE"] == "SET" and answer["DATA"][1].decode() == key, answer
            pickle.loads(answer["DATA"][4])
        self.command.send_multipart(command(7, self.name, {"STATE": "DONE"}))
        return count

    def close(self):
        for socket in (self.command, self.data, self.ttl):
            socket.close()


def say(**line):
    print(json.dumps(line), flush=True)


def host(context, port, nodes, size):
    client = Client(context, port, "Host", admin=True)
    client.initialise([str(uuid.uuid4()) for _ in range(nodes)], size)
    say(phase="ready")
    poller = zmq.Poller()
    poller.register(sys.stdin.fileno(), zmq.POLLIN)
    for socket in (client.command, client.data, client.ttl):
        poller.register(socket, zmq.POLLIN)
    while True:
        ready = dict(poller.poll(1000))
        if sys.stdin.fileno() in ready:
            return
        client.beat()
        for socket in (client.command, client.data):
            while socket.poll(0):
                socket.recv_multipart()


def join(context, port, rounds):
    seconds, count = [], 0
    for index in range(rounds):
        start = time.monotonic()
        client = Client(context, port, f"Joiner{index}-{uuid.uuid4().hex[:6]}")
        count = client.join()
        seconds.append(time.monotonic() - start)
        client.close()
    say(phase="done", nodes=count, seconds=seconds)


def relay(context, port, receivers, messages, size, kind, nodes, node_size, window=200):
    keys = [str(uuid.uuid4()) for _ in range(nodes)]
    sender = Client(context, port, "Sender", admin=True)
    sender.initialise(keys, node_size)
    others = [Client(context, port, f"Receiver{index}") for index in range(receivers)]
    for other in others:
        other.join()
    make = commit_chunks if kind == "commit" else node_chunks
    # Made beforehand, so that it costs nothing while the clock runs.
    stock = [make(keys[index % nodes], size, index) for index in range(min(messages, 512))]

    poller = zmq.Poller()
    for other in others:
        poller.register(other.data, zmq.POLLIN)
    counts = {other.data: 0 for other in others}

    def tend():
        for client in (sender, *others):
            client.beat()
            while client.command.poll(0):
                client.command.recv_multipart()

    def drain(timeout):
        for socket, _ in poller.poll(timeout):
            while True:
                try:
                    socket.recv_multipart(zmq.NOBLOCK)
                except zmq.Again:
                    break
                counts[socket] += 1

    # The first messages warm both sides up; they are not counted.
    deadline = time.monotonic() + 30
    sender.data.send_multipart(stock[0])
    while min(counts.values()) < 1 and time.monotonic() < deadline:
        drain(50)
        tend()
    for socket in counts:
        counts[socket] = 0
    say(phase="ready")
    sys.stdin.readline()

    start = last_tend = last_progress = time.monotonic()
    sent = done = 0
    while done < messages:
        # Bounded flight: upstream drops at its high-water mark, and this bench is about work, not loss.
        while sent < messages and sent - done < window:
            sender.data.send_multipart(stock[sent % len(stock)])
            sent += 1
        drain(20)
        now = time.monotonic()
        if min(counts.values()) > done:
            done, last_progress = min(counts.values()), now
        elif now - last_progress > 10:
            break
        if now - last_tend > 0.5:
            last_tend = now
            tend()
    wall = time.monotonic() - start
    say(phase="done", wall=wall, sent=sent, deliveries=sum(counts.values()), lost=sent * receivers - sum(counts.values()))
    sys.stdin.readline()


def latency(context, port, messages, size, nodes, node_size):
    keys = [str(uuid.uuid4()) for _ in range(nodes)]
    sender = Client(context, port, "Sender", admin=True)
    sender.initialise(keys, node_size)
    other = Client(context, port, "Receiver")
    other.join()
    time.sleep(1)
    micros = []
    for index in range(messages):
        if index % 100 == 0:
            for client in (sender, other):
                client.beat()
                while client.command.poll(0):
                    client.command.recv_multipart()
        message = commit_chunks(keys[index % nodes], size, index)
        start = time.perf_counter()
        sender.data.send_multipart(message)
        if not other.data.poll(10_000):
            raise SystemExit(f"message {index} is lost")
        other.data.recv_multipart()
        micros.append((time.perf_counter() - start) * 1e6)
    say(phase="done", micros=micros)


if __name__ == "__main__":
    arguments = json.loads(sys.argv[1])
    mode = {"host": host, "join": join, "latency": latency, "relay": relay}[arguments.pop("mode")]
    mode(zmq.Context(), **arguments)
