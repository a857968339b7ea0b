# SPDX-License-Identifier: GPL-3.0-or-later
"""A Multi-User add-on without Blender: one real `replication` client per process.

The published library does the talking (sessions, sockets, pickles, deepdiff, its own TTL process).
This file stands in for Blender and the add-on: datablocks, a main loop with timers in which any
exception ends the session, handlers that commit and push. It is driven by JSON lines on stdin and
answers with JSON lines on stdout; the library's log goes to stderr.
"""
import collections
import collections.abc
import copy
import json
import logging
import os
import pickle
import select
import struct
import sys
import time
import traceback
import uuid as uuids

import zmq

collections.MutableMapping = collections.abc.MutableMapping  # older versions still look for it here

import replication
import replication.interface
from deepdiff import DeepDiff, Delta
from replication import porcelain
from replication.constants import FETCHED, RP_COMMON, STATE_ACTIVE, STATE_INITIAL, STATE_LOBBY, UP, COMMITED
from replication.exception import NonAuthorizedOperationError
from replication.interface import session
from replication.objects import (Commit, Kick, Node, ReplicationObject, Right, Snapshot, UpdateClientsState,
                                 UpdateUserMetadata)
from replication.repository import Repository

from datablocks import BLOCKS, Collection, Scene, canonical, jsonable, matrix, new_object, new_scene, protocol


VERSION = tuple(int(part) for part in replication.__version__.split("."))
# 0.7 names one node in a Right; before 0.9 there is one password; from 0.9.12 on the sockets are plain TCP.
SINGLE_RIGHTS, ONE_PASSWORD, PLAIN_TCP = VERSION < (0, 8), VERSION < (0, 9), VERSION >= (0, 9, 12)


class Evil:
    """Unpickling this creates the file: proof that somebody ran a stranger's code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


class WatchedRepository(Repository):
    """Records messages, and what a server must never send but the library swallows silently."""

    def __init__(self, driver, **arguments):
        super().__init__(**arguments)
        self.driver = driver

    def fetch(self, socket):
        channel = "data" if socket is self.remote.data else "command"
        try:
            fetched = super().fetch(socket)
            if fetched is None:  # only in the versions with plain TCP
                return None
            identity, message = fetched
        except Exception as error:
            self.driver.violation(f"corrupt message on {channel}: {type(error).__name__}: {error}")
            raise
        self.driver.received(channel, message)
        return identity, message

    def push(self, socket, replication_object, identity=None, force=False):
        self.driver.log("out", "data" if socket is self.remote.data else "command", replication_object)
        super().push(socket, replication_object, identity=identity, force=force)


class Driver:
    def __init__(self):
        self.messages = []
        self.timers = {}
        self.jobs = []
        self.purged = set()  # what it asked the server to delete as orphans
        self.sockets = {}
        self.context = zmq.Context()
        self.exit_reason = None
        self.last_state = STATE_INITIAL
        self.turn = 0.001
        self.repository = None
        self.name = None
        self.is_host = False
        self.camera = [[0.0, 0.0, 0.0] for _ in range(7)]
        self.frame = 1
        self.selection = set()
        self.input = b""
        session.register("on_connection")(self.on_connection)
        session.register("on_exit")(self.on_exit)

    # --- reports --------------------------------------------------------------------------------

    def emit(self, **line):
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    def violation(self, text):
        logging.error("VIOLATION %s", text)
        self.emit(event="violation", text=text)

    def log(self, direction, channel, message):
        kind = type(message).__name__
        entry = {"t": round(time.monotonic(), 4), "dir": direction, "ch": channel, "type": kind}
        if isinstance(message, Node):
            entry.update(uuid=message.uuid, owner=message.owner)
        elif isinstance(message, Commit):
            entry.update(uuid=message.node_id)
        else:
            entry["owner"] = message.owner
            data = message.data
            if isinstance(data, dict) and "STATE" in data:
                entry["state"] = data["STATE"]
                if data.get("DATA") not in (None, b"removed"):
                    entry["uuid"] = bytes(data["DATA"][1]).decode()
                elif "ID" in data:
                    entry["uuid"] = data["ID"]
            elif kind in ("Right", "Delete", "Kick", "Auth", "Disconnect", "UpdateUserMetadata"):
                entry["data"] = jsonable(data)
            elif kind == "UpdateClientsState" and isinstance(data, dict):
                entry["data"] = list(data)
        self.messages.append(entry)

    def received(self, channel, message):
        self.log("in", channel, message)
        state = session.state
        if channel == "data":
            if not isinstance(message, (Node, Commit)):
                self.violation(f"{type(message).__name__} on the data channel")
            if state != STATE_ACTIVE:
                self.violation(f"{type(message).__name__} on the data channel in state {state}")
            if isinstance(message, Node) and "type_id" not in (message.data or {}):
                self.violation(f"node {message.uuid} without type_id")
        elif isinstance(message, (Node, Commit)):
            self.violation(f"{type(message).__name__} on the command channel")
        elif isinstance(message, Snapshot) and message.data.get("STATE") == "SET":
            chunks = message.data.get("DATA")
            current = getattr(session, "_current_snapshot", None)
            if chunks != b"removed" and chunks[1].decode() != current:
                self.violation(f"SET of {chunks[1]} while {current} is current")
        elif isinstance(message, UpdateClientsState):
            self.check_table(message.data)
        elif isinstance(message, Right):
            nodes = message.data["uuid"]
            if not isinstance(nodes, str if SINGLE_RIGHTS else list) or not isinstance(message.data["owner"], str):
                self.violation(f"malformed Right {message.data!r}")

    def check_table(self, table):
        if self.name not in table and session.state != replication.constants.STATE_AUTH:
            self.violation(f"users table without its receiver: {list(table)}")
        for name, user in table.items():
            missing = {"id", "admin", "latency", "status", "metadata"} - set(user)
            if missing:
                self.violation(f"users table: {name} lacks {missing}")
            elif type(user["latency"]) is not int or user["id"] != name or not isinstance(user["metadata"], dict):
                self.violation(f"users table: malformed entry for {name}: {user!r}")

    def on_exit(self, reason="none"):
        self.exit_reason = reason
        self.timers.clear()
        self.jobs.clear()
        self.emit(event="exit", reason=jsonable(reason))

    def on_connection(self):
        """What the add-on does once a session is there: make all datablocks, then fill them."""
        repository = self.repository
        if not self.is_host:
            for key in repository.index_sorted:
                node = repository.graph.get(key)
                if node is None:
                    self.violation(f"joined with a dangling dependency {key}")
                elif node.state == FETCHED:
                    node.instance = repository.rdp.resolve(node.data)
                    if node.instance is None:
                        node.instance = repository.rdp.construct(node.data)
                        node.instance.uuid = node.uuid
            for key in repository.heads:
                porcelain.apply(repository, key)
        self.every("ApplyTimer", 0.02, self.apply_timer)

    # --- the main loop --------------------------------------------------------------------------

    def every(self, name, period, function):
        self.timers[name] = [period, 0.0, function]

    def in_timer(self, name, function):
        """As the add-on's timers: an exception ends the user's session."""
        try:
            function()
        except Exception as error:
            traceback.print_exc()
            self.emit(event="exception", timer=name, text=f"{type(error).__name__}: {error}",
                      trace=traceback.format_exc())
            self.timers.pop(name, None)
            session.disconnect(reason=f"Error during timer {name} execution")

    def run_timers(self):
        now = time.monotonic()
        for name in list(self.timers):
            timer = self.timers.get(name)
            if timer and now >= timer[1]:
                timer[1] = now + timer[0]
                self.in_timer(name, timer[2])

    def listen_timer(self):
        session.listen()
        self.note_state()

    def note_state(self):
        if session.state != self.last_state:
            self.last_state = session.state
            self.emit(event="state", state=session.state)

    def apply_timer(self):
        if session.state != STATE_ACTIVE:
            return
        for key in self.repository.graph.keys():
            node = self.repository.graph.get(key)
            if node.state == FETCHED:
                try:
                    porcelain.apply(self.repository, key)
                except Exception as error:
                    traceback.print_exc()
                    self.violation(f"node {key} cannot be applied: {type(error).__name__}: {error}")
                    node.state = UP

    def presence_timer(self):
        """Pushes the first metadata until the server shows it back, then whole tables on change."""
        if session.state not in (STATE_ACTIVE, STATE_LOBBY):
            return
        me = session.online_users.get(self.name)
        if not me:
            return
        for user in session.online_users.values():
            user["metadata"].get("view_matrix")
        metadata = me.get("metadata")
        if not metadata or "color" not in metadata:
            porcelain.update_user_metadata(self.repository, {
                "view_corners": matrix(), "view_matrix": matrix(), "color": (0.1, 0.5, 0.25, 1),
                "frame_current": self.frame, "scene_current": "Scene", "mode_current": "OBJECT"})
        elif metadata["scene_current"] != "Scene":
            metadata["scene_current"] = "Scene"
            porcelain.update_user_metadata(self.repository, metadata)
        elif "view_corners" in metadata and self.camera != metadata["view_corners"]:
            metadata["view_corners"] = copy.deepcopy(self.camera)
            porcelain.update_user_metadata(self.repository, metadata)
        elif metadata["mode_current"] != "OBJECT":
            metadata["mode_current"] = "OBJECT"
            porcelain.update_user_metadata(self.repository, metadata)

    def run(self):
        while True:
            self.read_input()
            self.run_timers()
            for job in list(self.jobs):
                job.tick(self)
            self.note_state()
            self.rest()

    def rest(self):
        if self.turn > 0.001:
            time.sleep(self.turn)
            return
        wait = 0.005 if self.jobs else 0.02
        poller = zmq.Poller()
        poller.register(sys.stdin.fileno(), zmq.POLLIN)
        if session.state != STATE_INITIAL:
            for socket in (session.remote.command, session.remote.data):
                try:
                    poller.register(socket.fileno() if PLAIN_TCP else socket, zmq.POLLIN)
                except (AttributeError, OSError):
                    pass  # not connected yet
        poller.poll(wait * 1000)

    def read_input(self):
        while select.select([sys.stdin], [], [], 0)[0]:
            chunk = os.read(sys.stdin.fileno(), 1 << 16)
            if not chunk:
                if session.state != STATE_INITIAL:
                    session.disconnect(reason="driver ends")
                sys.exit(0)
            self.input += chunk
            while b"\n" in self.input:
                line, self.input = self.input.split(b"\n", 1)
                self.command(json.loads(line))

    def command(self, request):
        try:
            result = getattr(self, "do_" + request["cmd"])(**request.get("args", {}))
        except Exception as error:
            logging.warning("command %s failed", request, exc_info=True)
            self.emit(id=request["id"], error=f"{type(error).__name__}: {error}")
        else:
            self.note_state()  # now: an answer may change it again within this turn
            after = result if callable(result) else None
            self.emit(id=request["id"], result=None if after else jsonable(result))
            if after:
                after()

    # --- helpers --------------------------------------------------------------------------------

    def node(self, ref):
        """A node by uuid, by datablock name, or by `Type:name`."""
        graph = self.repository.graph
        if ref in graph:
            return graph[ref]
        kind, _, name = ref.rpartition(":")
        for node in graph.values():
            if node.data is None:
                continue
            if node.data.get("name") == name and kind in ("", node.data.get("type_id")):
                return node
        for node in graph.values():
            if node.instance and node.instance.name == name:
                return node
        raise KeyError(f"no node {ref}")

    def settled_node(self, ref):
        node = self.node(ref)
        if node.state == FETCHED:
            porcelain.apply(self.repository, node.uuid)
        return node

    def publish(self, node):
        porcelain.commit(self.repository, node.uuid)
        porcelain.push(self.repository, "origin", node.uuid)
        if isinstance(node.instance, (Scene, Collection)):
            self.purge()

    def purge(self):
        self.purged.update(getattr(self.repository, "get_orphans_nodes", list)())
        porcelain.purge_orphan_nodes(self.repository)

    def chunks(self, expression):
        """Raw frames from a Python expression, with a few helpers at hand."""
        value = eval(expression, {
            "P": lambda value: pickle.dumps(value, 4), "pickle": pickle, "Evil": Evil, "uid": lambda ref: self.node(ref).uuid,
            "R": lambda key: key if SINGLE_RIGHTS else [key],  # as a Right names what it is about
            "node": self.node, "raw": lambda ref: self.node(ref).as_raw_chunks(), "session": session, "struct": struct,
            "os": os, "Delta": Delta, "DeepDiff": DeepDiff})
        return [value] if isinstance(value, bytes) else value

    # --- commands: session ------------------------------------------------------------------------

    def do_connect(self, port, name, address="127.0.0.1", server_password=None, admin_password=None, timeout=5000,
                   version=None, turn_ms=1, without_data=False):
        BLOCKS.clear()
        self.name = name
        self.exit_reason = None
        self.is_host = False
        self.selection = set()
        self.turn = turn_ms / 1000.0
        if version:
            replication.interface.__version__ = version
        if without_data:
            dealer, connect = replication.net.Dealer, replication.net.Dealer.connect
            dealer.connect = lambda self, **options: self._role == replication.net.ROLE_DATA or connect(self, **options)
        self.repository = WatchedRepository(self, rdp=protocol(), username=name)
        if ONE_PASSWORD:
            porcelain.remote_add(self.repository, "origin", address, port, admin_password=admin_password)
            session.connect(repository=self.repository, timeout=timeout, password=admin_password or server_password)
        else:
            porcelain.remote_add(self.repository, "origin", address, port,
                                 server_password=server_password, admin_password=admin_password)
            session.connect(repository=self.repository, timeout=timeout, server_password=server_password,
                            admin_password=admin_password)
        self.every("SessionListenTimer", self.turn, self.listen_timer)
        self.every("ClientUpdate", 0.05, self.presence_timer)
        return {"ttl_pid": session._ttl.pid, "identity": session.remote.uuid.hex}

    def do_init(self, objects=(), vertices=8):
        self.is_host = True
        if not self.repository.graph:
            porcelain.add(self.repository, new_scene(objects, vertices))
        session.init()

    def do_disconnect(self, reason="user"):
        session.disconnect(reason=reason)

    def do_info(self, address, timeout=1000):
        return porcelain.request_session_info(address, timeout=timeout)

    def do_pause(self, seconds):
        def sleep():
            time.sleep(seconds)
            self.emit(event="resumed")
        return sleep

    def do_turn(self, ms):
        self.turn = ms / 1000.0
        if "SessionListenTimer" in self.timers:
            self.timers["SessionListenTimer"][0] = self.turn

    # --- commands: editing ------------------------------------------------------------------------

    def do_edit(self, ref, code, cheat=False):
        """Runs `code` with `d` (the datablock's data) and `b` (the datablock), then commits and pushes."""
        node = self.settled_node(ref)
        self.look_first(node, cheat)
        exec(code, {"d": node.instance.data, "b": node.instance, "node": self.node,
                    "block": lambda r: self.settled_node(r).instance})
        if not cheat:
            return self.publish(node)
        # What a client without the library's own check would do.
        porcelain.commit(self.repository, node.uuid)
        self.repository.push(self.repository.remote.data, node.last_commit or node)
        node.state, node.last_commit = UP, None

    def look_first(self, node, cheat):
        """The add-on leaves alone what is another's, before its own copy has changed."""
        if not cheat and node.owner not in (self.name, RP_COMMON):
            raise NonAuthorizedOperationError(f"{node.uuid} belongs to {node.owner}")

    def do_push_full(self, ref, code="", cheat=False):
        node = self.settled_node(ref)
        self.look_first(node, cheat)
        if code:
            exec(code, {"d": node.instance.data, "b": node.instance})
            porcelain.commit(self.repository, node.uuid)
        node.state = COMMITED
        if cheat:
            self.repository.push(self.repository.remote.data, node)
            node.state, node.last_commit = UP, None
        else:
            porcelain.push(self.repository, "origin", node.uuid, force=True)

    def do_add(self, name, collection="Collection", vertices=8):
        """A new object, as the add-on sends it: Node(mesh), Node(object), Commit(collection)."""
        parent = self.settled_node(collection)
        parent.instance.links["objects"].append(new_object(name, vertices))
        self.publish(parent)
        return self.node(f"Object:{name}").uuid

    def do_add_scene(self, objects=(), vertices=8):
        """One more scene, as the add-on sends it when Blender shows one that has no uuid yet."""
        key = porcelain.add(self.repository, new_scene(objects, vertices))
        porcelain.commit(self.repository, key)
        porcelain.push(self.repository, "origin", key)

    def do_add_loose(self, name, vertices=8):
        """The first half of `add`: the object is there, no collection names it yet."""
        key = porcelain.add(self.repository, new_object(name, vertices))
        porcelain.commit(self.repository, key)
        porcelain.push(self.repository, "origin", key)
        return key

    def do_link(self, name, collection="Collection"):
        """The second half of `add`."""
        parent = self.settled_node(collection)
        parent.instance.links["objects"].append(self.settled_node(f"Object:{name}").instance)
        self.publish(parent)

    def do_delete(self, name):
        """As a user deletes: unlinked from every collection, then orphans are purged."""
        target = self.settled_node(name).instance
        changed = []
        for node in list(self.repository.graph.values()):
            if node.instance and any(target in linked for linked in node.instance.links.values()):
                self.settled_node(node.uuid)
                for linked in node.instance.links.values():
                    linked[:] = [other for other in linked if other is not target]
                changed.append(node)
        for node in changed:
            porcelain.commit(self.repository, node.uuid)
            porcelain.push(self.repository, "origin", node.uuid)
        self.purge()

    def do_rm(self, ref, dependencies=False):
        porcelain.rm(self.repository, self.node(ref).uuid, remove_dependencies=dependencies)

    def do_purge(self):
        self.purge()

    def do_drag(self, refs, rate=30, seconds=1.0, key="location"):
        self.jobs.append(Drag(refs, rate, seconds, key))

    # --- commands: rights and presence --------------------------------------------------------------

    def do_lock(self, refs, dependencies=True, owner=None):
        for keys in self.together(refs):
            porcelain.lock(self.repository, keys, new_owner=owner, affect_dependencies=dependencies)

    def do_unlock(self, refs, dependencies=True):
        for keys in self.together(refs):
            porcelain.unlock(self.repository, keys, affect_dependencies=dependencies)

    def together(self, refs):
        keys = [self.node(ref).uuid for ref in refs]
        return keys if SINGLE_RIGHTS else [keys]

    def do_select(self, refs):
        """The selection timer: releases what is no longer selected, locks what is, tells the others.

        `""` is an object that the add-on has not registered yet."""
        chosen = {ref and self.node(ref).uuid for ref in refs}

        def execute():
            released, taken = list(self.selection - chosen), list(chosen - self.selection)
            for keys, function in ((released, porcelain.unlock), (taken, porcelain.lock)):
                for key in filter(None, keys) if SINGLE_RIGHTS else [keys] if keys else []:
                    try:
                        function(self.repository, key, ignore_warnings=True, affect_dependencies=True)
                    except NonAuthorizedOperationError as error:
                        logging.warning(error)
            self.selection = chosen
            porcelain.update_user_metadata(self.repository, {"selected_objects": chosen})
            if not chosen:
                mine = [key for key, node in self.repository.graph.items() if node.owner == self.name]
                for key in mine if SINGLE_RIGHTS else [mine] if mine else []:
                    porcelain.unlock(self.repository, key, ignore_warnings=True, affect_dependencies=True)
        self.in_timer("DynamicRightSelectTimer", execute)

    def do_metadata(self, code):
        metadata = eval(code)
        self.frame = metadata.get("frame_current", self.frame)
        porcelain.update_user_metadata(self.repository, metadata)

    def do_look(self, x):
        """Moves the camera: the whole metadata table goes out with the next presence turn."""
        self.camera[0] = [float(x), 0.0, 0.0]

    def do_kick(self, user, cheat=False):
        if cheat:
            self.repository.push(self.repository.remote.command, Kick(owner=self.name, data={"user": user}))
        else:
            porcelain.kick(self.repository, user)

    # --- commands: looking ----------------------------------------------------------------------------

    def do_status(self):
        return {"state": session.state, "reason": self.exit_reason, "users": list(self.users()),
                "jobs": len(self.jobs)}

    def users(self):
        return self.repository.remote.online_users if self.repository and self.repository.remote else {}

    def do_users(self):
        return self.users()

    def do_graph(self):
        return self.whole(self.repository)

    def do_load(self, path):
        """The graph of a session file, as the library reads it."""
        repository = Repository(rdp=protocol(), username="reader")
        repository.loads(path)
        return self.whole(repository)

    def whole(self, repository):
        return {key: {"owner": node.owner, "deps": list(node.dependencies or []), "data": canonical(node.data)}
                for key, node in repository.graph.items()}

    def do_node(self, ref):
        node = self.node(ref)
        return {"uuid": node.uuid, "owner": node.owner, "deps": list(node.dependencies or []), "state": node.state,
                "data": canonical(node.data)}

    def do_get(self, ref, code):
        """Evaluates `code` with `d`, the node's data as the library holds it."""
        node = self.node(ref)
        return eval(code, {"d": node.data, "n": node})

    def do_eval(self, code):
        return eval(code, {"session": session, "repository": self.repository, "driver": self, "node": self.node})

    def do_log(self):
        return self.messages

    # --- commands: raw ----------------------------------------------------------------------------------

    def do_raw(self, channel, expr):
        socket = {"command": session.remote.command, "data": session.remote.data}[channel]
        (socket.send if PLAIN_TCP else socket.send_multipart)(self.chunks(expr))

    def do_open(self, key, port, identity=None, address="127.0.0.1"):
        """A bare DEALER without a session; `identity` in hex, random if not given."""
        socket = self.context.socket(zmq.DEALER)
        socket.setsockopt(zmq.IDENTITY, bytes.fromhex(identity) if identity else uuids.uuid4().bytes)
        socket.linger = 0
        socket.connect(f"tcp://{address}:{port}")
        self.sockets[key] = socket
        return socket.getsockopt(zmq.IDENTITY).hex()

    def do_close(self, key):
        self.sockets.pop(key).close()

    def do_send(self, key, expr):
        try:
            self.sockets[key].send_multipart(self.chunks(expr), flags=zmq.NOBLOCK)
        except zmq.Again:
            pass  # the server has refused this connection for good

    def do_recv(self, key, timeout=1.0):
        """Everything that comes until `timeout` seconds pass without a message."""
        messages = []
        while self.sockets[key].poll(timeout * 1000):
            frames = self.sockets[key].recv_multipart()
            try:
                message = ReplicationObject.from_raw_chunks(frames)
                entry = {"type": type(message).__name__}
                if isinstance(message, (Node, Commit)):
                    entry["uuid"] = getattr(message, "uuid", None) or message.node_id
                else:
                    entry.update(owner=message.owner, data=jsonable(message.data))
            except Exception:
                entry = {"type": None, "frames": [frame.hex() for frame in frames]}
            messages.append(entry)
        return messages


class Drag:
    """A user moving things: `rate` edits a second in turn over `refs`, for `seconds`."""

    def __init__(self, refs, rate, seconds, key):
        self.refs, self.rate, self.key = refs, rate, key
        self.start = time.monotonic()
        self.end = self.start + seconds
        self.edits = self.sent = 0

    def tick(self, driver):
        now = time.monotonic()
        if now < self.start + self.edits / self.rate:
            return
        if now >= self.end or session.state != STATE_ACTIVE:
            driver.jobs.remove(self)
            driver.emit(event="drag", refs=self.refs, edits=self.edits, sent=self.sent)
            return
        ref = self.refs[self.edits % len(self.refs)]
        self.edits += 1
        try:
            node = driver.settled_node(ref)
            # The handler of the add-on leaves alone what is not the user's own (or nobody's).
            if node.owner not in (driver.name, RP_COMMON):
                return
            value = self.edits / 64.0 + len(driver.name) * 1000.0
            values = node.instance.data.setdefault(self.key, [0.0, 0.0, 0.0])
            values[self.edits % 3] = value
            driver.publish(node)
            self.sent += 1
        except Exception as error:
            logging.warning("drag of %s: %s", ref, error, exc_info=True)
            driver.emit(event="edit_failed", ref=ref, text=f"{type(error).__name__}: {error}")


def main():
    logging.basicConfig(level=logging.INFO, stream=sys.stderr,
                        format="%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s", datefmt="%H:%M:%S")
    Driver().run()


if __name__ == "__main__":  # without the zygote, as the trials of a deployed server start it
    main()
