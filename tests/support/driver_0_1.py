# SPDX-License-Identifier: GPL-3.0-or-later
"""As driver.py, for the four-socket versions: one real `replication` 0.1.x client per process.

Their library has threads of its own for the network, so this main loop only applies what came, edits, and answers.
"""
import collections
import collections.abc
import copy
import json
import logging
import os
import select
import socket
import sys
import time
import traceback

import zmq

collections.MutableMapping = collections.abc.MutableMapping  # these versions still look for it here

from replication import __version__
import replication.network
from replication.constants import FETCHED, RP_COMMON, STATE_ACTIVE, STATE_INITIAL, STATE_SRV_SYNC
from replication.data import RepRightCommand, ReplicatedCommand, ReplicatedDataFactory, ReplicatedDatablock
from replication.exception import NonAuthorizedOperationError
from replication.interface import session

from datablocks import BLOCKS, STAMPS, TYPES, Collection, Scene, canonical, jsonable, new_object, new_scene


def implementation(block):
    """The library's view of one datablock type; its class is named as those of the add-on."""

    class Implementation(ReplicatedDatablock):
        diff_method = 0

        def __init__(self, *args, **kwargs):
            super().__init__(*args, **kwargs)
            if self.instance is not None:
                self.instance.uuid = self.uuid

        def resolve(self):
            self.instance = BLOCKS.get(self.uuid)
            if self.instance is None:
                self.instance = block(self.data["name"])
                self.instance.uuid = self.uuid

        def is_valid(self):
            return True

        def resolve_deps(self):
            return [linked for role in block.roles for linked in self.instance.links[role]]

        def _dump(self, instance=None):
            data = {"name": instance.name, **copy.deepcopy(instance.data)}
            for role in block.roles:
                data[role] = [linked.uuid for linked in instance.links[role]]
            return data

        def _load(self, data=None, target=None):
            target.name = data["name"]
            target.data = copy.deepcopy({k: v for k, v in data.items() if k not in STAMPS and k not in block.roles})
            for role in block.roles:
                target.links[role] = [BLOCKS[u] for u in data.get(role, ()) if u in BLOCKS]

    Implementation.__name__ = Implementation.__qualname__ = f"Bl{block.__name__}"
    return Implementation


def watch(driver):
    """Lets the driver see what the network thread receives, and when the line of the nodes breaks."""
    def watched(cls):
        fetch = cls.fetch

        def fetch_and_log(socket, factory=None):
            message = fetch(socket, factory)
            driver.log(message)
            return message
        cls.fetch = staticmethod(fetch_and_log)

    watched(ReplicatedCommand)
    watched(ReplicatedDatablock)
    service = replication.network.ClientNetService
    start = service.start

    def start_watched(self):
        driver.line = self._subscriber.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        start(self)
    service.start = start_watched


class Reasons(logging.Handler):
    """The library tells its user why a session ended by its log alone."""

    def __init__(self, driver):
        super().__init__()
        self.driver = driver

    def emit(self, record):
        text = record.getMessage()
        if text.startswith(("Quitting session.", "Connection refused", "Connection failed", "Failed to connect")):
            self.driver.exit_reason = text
        if text.endswith("Cause:Error fetching data") or "Cause:Failed to deserialize" in text:
            self.driver.out_of_step.append(text)
        elif "Corrupted frame" in text or "Failed to push" in text or "Load " in text and "failed" in text:
            self.driver.violation(text)


class Driver:
    def __init__(self):
        self.input = b""
        self.jobs = []
        self.name = None
        self.exit_reason = None
        self.exited = False
        self.left = False
        self.pushed_first = False
        self.last_state = STATE_INITIAL
        self.selection = set()
        self.line = None
        self.lines_break = False
        self.out_of_step = []
        self.messages = []
        watch(self)
        factory = ReplicatedDataFactory()
        for block in TYPES:
            factory.register_type(block, implementation(block))
        session.configure(factory=factory)
        session.register("on_connection")(lambda: None)
        session.register("on_exit")(self.on_exit)
        logging.getLogger().addHandler(Reasons(self))

    def emit(self, **line):
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()

    def violation(self, text):
        self.emit(event="violation", text=text)

    def log(self, message):
        kind = type(message).__name__.removeprefix("Rep").removesuffix("Command")
        entry = {"t": round(time.monotonic(), 4), "dir": "in", "type": kind, "owner": message.owner}
        if isinstance(message, ReplicatedDatablock):
            entry.update(type="Node", uuid=message.uuid)
        elif isinstance(message.data, dict) and "STATE" in message.data:
            entry["state"] = message.data["STATE"]
        elif kind in ("Right", "Delete", "Auth", "Disconnect"):
            entry["data"] = jsonable(message.data)
        self.messages.append(entry)

    def check_line(self):
        """A header or chunk without the other is the server's fault, unless the line broke between them."""
        while self.line and self.line.poll(0):
            self.line.recv_multipart()
            self.lines_break = True
        while self.out_of_step:
            text = self.out_of_step.pop()
            if not self.lines_break:
                self.violation(text)

    def on_exit(self, reason=None):
        """Later 0.1 versions tell the reason here as well."""
        self.exit_reason = self.exit_reason or reason
        self.exited = True

    # --- the main loop --------------------------------------------------------------------------

    def state(self):
        state = session.state["STATE"]
        if state == STATE_SRV_SYNC:  # of a rejection only the network thread knows
            return session._orchestrator._service_manager._services["NetworkIO"]["instance"].state
        return state

    def nodes(self):
        """The graph changes under the reader's hands."""
        while True:
            try:
                return dict(session._graph.store)
            except RuntimeError:
                pass

    def turn(self):
        self.check_line()
        state = self.state()
        if self.exited:
            self.exited, self.last_state = False, STATE_INITIAL
            self.jobs.clear()
            self.emit(event="exit", reason=jsonable(self.exit_reason or "user"))
            return
        if state != self.last_state:
            self.last_state = state
            self.emit(event="state", state=state)
        if state != STATE_ACTIVE:
            return
        for key, node in self.nodes().items():
            if node.state == FETCHED:
                try:
                    session.apply(key)
                except Exception as error:
                    traceback.print_exc()
                    self.violation(f"node {key} cannot be applied: {type(error).__name__}: {error}")
        if not self.pushed_first:
            self.pushed_first = True
            session.update_user_metadata({"color": (0.1, 0.5, 0.25, 1), "frame_current": 1, "scene_current": "Scene",
                                          "mode_current": "OBJECT", "view_corners": None})

    def run(self):
        while True:
            self.read_input()
            self.turn()
            for job in list(self.jobs):
                job()
            time.sleep(0.005)

    def read_input(self):
        while select.select([sys.stdin], [], [], 0)[0]:
            chunk = os.read(sys.stdin.fileno(), 1 << 16)
            if not chunk:
                os._exit(0)
            self.input += chunk
            while b"\n" in self.input:
                line, self.input = self.input.split(b"\n", 1)
                request, after = json.loads(line), None
                try:
                    result = getattr(self, "do_" + request["cmd"])(**request.get("args", {}))
                except Exception as error:
                    logging.warning("command %s failed", request, exc_info=True)
                    self.emit(id=request["id"], error=f"{type(error).__name__}: {error}")
                else:
                    after = result if callable(result) else None
                    self.emit(id=request["id"], result=None if after else jsonable(result))
                    if after:
                        after()

    # --- helpers --------------------------------------------------------------------------------

    def node(self, ref):
        nodes = self.nodes()
        if ref in nodes:
            return nodes[ref]
        kind, _, name = ref.rpartition(":")
        for node in nodes.values():
            if node.data and node.data.get("name") == name and kind in ("", node.str_type[2:]):
                return node
        raise KeyError(f"no node {ref}")

    def settled_node(self, ref):
        node = self.node(ref)
        if node.state == FETCHED:
            session.apply(node.uuid)
        return node

    def publish(self, node):
        node.state = 5  # MODIFIED, as after a look at the datablock
        session.commit(node.uuid)
        session.push(node.uuid)

    # --- commands -------------------------------------------------------------------------------

    def do_connect(self, port, name, address="127.0.0.1", server_password=None, admin_password=None, timeout=5000,
                   version=None, turn_ms=1):
        BLOCKS.clear()
        self.lines_break = False
        self.name, self.exit_reason, self.pushed_first, self.selection = name, None, False, set()
        if version:
            replication.network.__version__ = version
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            ipc_port = probe.getsockname()[1]
        if self.left:
            factory = session._factory
            session.configure(factory=factory)
        self.left = True
        session.connect(id=name, address=address, port=port, ipc_port=ipc_port, timeout=timeout,
                        password=admin_password or server_password)

    def do_init(self, objects=(), vertices=8):
        if not self.nodes():
            session.add(new_scene(objects, vertices))
        session.init()

    def do_disconnect(self, reason="user"):
        session.disconnect()
        end = time.monotonic() + 10
        while session._orchestrator.is_alive() and time.monotonic() < end:
            time.sleep(0.01)
        self.turn()

    def do_edit(self, ref, code, cheat=False):
        node = self.settled_node(ref)
        if not cheat and node.owner not in (self.name, RP_COMMON):
            raise NonAuthorizedOperationError(ref)  # before its own copy has changed, as the add-on does
        exec(code, {"d": node.instance.data, "b": node.instance, "node": self.node})
        if cheat:
            owner, node.owner = node.owner, RP_COMMON
            self.publish(node)
            node.owner = owner
        else:
            self.publish(node)

    def do_push_full(self, ref, code="", cheat=False):
        self.do_edit(ref, code, cheat)

    def do_add(self, name, collection="Collection", vertices=8):
        parent = self.settled_node(collection)
        parent.instance.links["objects"].append(new_object(name, vertices))
        self.publish(parent)
        return self.node(f"Object:{name}").uuid

    def do_add_scene(self, objects=(), vertices=8):
        node = self.node(session.add(new_scene(objects, vertices)))
        session.commit(node.uuid)
        session.push(node.uuid)

    def do_add_loose(self, name, vertices=8):
        """The first half of `add`: the object is there, no collection names it yet."""
        key = session.add(new_object(name, vertices))
        session.commit(key)
        session.push(key)
        return key

    def do_link(self, name, collection="Collection"):
        """The second half of `add`."""
        parent = self.settled_node(collection)
        parent.instance.links["objects"].append(self.settled_node(f"Object:{name}").instance)
        self.publish(parent)

    def do_purge(self):
        pass  # this came later

    def do_delete(self, name):
        target = self.settled_node(name).instance
        for node in list(self.nodes().values()):
            if node.instance and any(target in linked for linked in node.instance.links.values()):
                for linked in node.instance.links.values():
                    linked[:] = [other for other in linked if other is not target]
                self.publish(node)
        gone = [target, *target.links.get("mesh", ())]
        for block in gone:
            session.remove(block.uuid, remove_dependencies=False)

    def do_rm(self, ref, dependencies=False, cheat=False):
        node = self.node(ref)
        if cheat:
            node.owner = RP_COMMON
        session.remove(node.uuid, remove_dependencies=dependencies)

    def do_drag(self, refs, rate=30, seconds=1.0, key="location"):
        start, count, sent = time.monotonic(), 0, 0

        def tick():
            nonlocal count, sent
            now = time.monotonic()
            if now < start + count / rate:
                return
            if now >= start + seconds or self.state() != STATE_ACTIVE:
                self.jobs.remove(tick)
                return self.emit(event="drag", refs=refs, edits=count, sent=sent)
            ref = refs[count % len(refs)]
            count += 1
            try:
                node = self.settled_node(ref)
                if node.owner not in (self.name, RP_COMMON):
                    return
                values = node.instance.data.setdefault(key, [0.0, 0.0, 0.0])
                values[count % 3] = count / 64.0 + len(self.name) * 1000.0
                self.publish(node)
                sent += 1
            except Exception as error:
                logging.warning("drag of %s: %s", ref, error, exc_info=True)
        self.jobs.append(tick)

    def do_lock(self, refs, dependencies=True, owner=None):
        """Takes what is another's as well, as somebody does who has not heard of it yet."""
        for ref in refs:
            key = self.node(ref).uuid
            if self.node(ref).owner in (self.name, RP_COMMON):
                session.change_owner(key, owner or self.name, affect_dependencies=dependencies)
            else:
                self.do_take(ref)

    def do_unlock(self, refs, dependencies=True):
        for ref in refs:
            session.change_owner(self.node(ref).uuid, RP_COMMON, affect_dependencies=dependencies)

    def do_select(self, refs):
        # "" is an object that the add-on has not registered yet: this library never hears of it.
        chosen = {self.node(ref).uuid for ref in refs if ref}
        for key in self.selection - chosen:
            if key in self.nodes():
                session.change_owner(key, RP_COMMON)
        for key in chosen - self.selection:
            session.change_owner(key, self.name)
        self.selection = chosen
        session.update_user_metadata({"selected_objects": [*chosen]})
        if not chosen:
            for key, node in self.nodes().items():
                if node.owner == self.name:
                    session.change_owner(key, RP_COMMON)

    def do_take(self, ref):
        """A Right without the library's own check."""
        command = RepRightCommand(owner=self.name, data={"uuid": self.node(ref).uuid, "owner": self.name})
        command.execute(session._graph)
        session._item_to_push.put(command)

    def do_look(self, x):
        session.update_user_metadata({"view_corners": [[float(x), 0.0, 0.0]] + [[0.0, 0.0, 0.0]] * 6})

    def do_metadata(self, code):
        session.update_user_metadata(eval(code))

    def do_kick(self, user, cheat=False):
        if cheat:
            from replication.data import RepKickCommand
            session._item_to_push.put(RepKickCommand(owner=self.name, data={"user": user}))
        else:
            session.kick(user)

    def do_pause(self, seconds):
        def sleep():
            time.sleep(seconds)
            self.emit(event="resumed")
        return sleep

    def do_status(self):
        return {"state": self.state(), "reason": self.exit_reason, "users": list(session.online_users),
                "jobs": len(self.jobs)}

    def do_users(self):
        return dict(session.online_users)

    def do_graph(self):
        return {key: {"owner": node.owner, "deps": list(node.dependencies or []), "data": canonical(node.data)}
                for key, node in self.nodes().items()}

    def do_node(self, ref):
        node = self.node(ref)
        return {"uuid": node.uuid, "owner": node.owner, "deps": list(node.dependencies or []), "state": node.state,
                "data": canonical(node.data)}

    def do_get(self, ref, code):
        node = self.node(ref)
        return eval(code, {"d": node.data, "n": node})

    def do_eval(self, code):
        return eval(code, {"session": session, "driver": self, "node": self.node})

    def do_log(self):
        return self.messages


def main():
    logging.basicConfig(level=logging.INFO, stream=sys.stderr,
                        format="%(asctime)s.%(msecs)03d %(levelname)-7s %(message)s", datefmt="%H:%M:%S")
    Driver().run()
