# SPDX-License-Identifier: GPL-3.0-or-later
"""Datablocks without Blender, the library's view of them, and a text by which their values compare."""
import copy
import hashlib
import json
import struct

from deepdiff import DeepDiff, Delta

# What bpy.data is to the add-on: every datablock that was stamped, by uuid.
BLOCKS = {}


class Datablock:
    """Plain data plus links to other datablocks, by role. `uuid` is stamped by the library."""

    roles = ()
    common = False
    use_delta = True

    def __init__(self, name, data=None, **links):
        self._uuid = None
        self.name = name
        self.data = data if data is not None else {}
        self.links = {role: list(links.get(role, ())) for role in self.roles}

    @property
    def uuid(self):
        return self._uuid

    @uuid.setter
    def uuid(self, value):
        self._uuid = value
        BLOCKS[value] = self


class Scene(Datablock):
    roles = ("world", "objects", "children")
    common = True


class Collection(Datablock):
    roles = ("objects", "children")
    common = True


class Object(Datablock):
    roles = ("mesh", "parent")


class Mesh(Datablock):
    roles = ("materials",)


class Material(Datablock):
    roles = ("images",)


class World(Datablock):
    common = True


class Action(Datablock):
    common = True


class Image(Datablock):
    use_delta = False


TYPES = (Scene, Collection, Object, Mesh, Material, World, Action, Image)
STAMPS = ("name", "type_id", "uuid")


def implementation(block):
    """The library's view of one datablock type."""
    from replication.protocol import ReplicatedDatablock  # 0.1.x has another one

    class Implementation(ReplicatedDatablock):
        is_root = block is Scene
        use_delta = block.use_delta

        @staticmethod
        def construct(data):
            return block(data["name"])

        @staticmethod
        def dump(instance):
            data = {"name": instance.name}
            data.update(copy.deepcopy(instance.data))
            for role in block.roles:
                data[role] = [linked.uuid for linked in instance.links[role]]
            return data

        @staticmethod
        def load(data, instance):
            instance.name = data["name"]
            instance.data = copy.deepcopy({k: v for k, v in data.items()
                                           if k not in STAMPS and k not in block.roles})
            # Blender cannot link what it does not have, and neither does the add-on try.
            for role in block.roles:
                instance.links[role] = [BLOCKS[u] for u in data.get(role, ()) if u in BLOCKS]

        @staticmethod
        def resolve(data):
            found = BLOCKS.get(data.get("uuid"))
            return found if isinstance(found, block) else None

        @staticmethod
        def resolve_deps(instance):
            return [linked for role in block.roles for linked in instance.links[role]]

        @staticmethod
        def compute_delta(last_data, current_data):
            options = {}
            if block in (Scene, Collection):
                options = {"ignore_order": True, "report_repetition": True}
            return Delta(DeepDiff(last_data, current_data, cache_size=5000, **options))

    return Implementation


def protocol():
    from replication.protocol import DataTranslationProtocol
    rdp = DataTranslationProtocol()
    for block in TYPES:
        rdp.register_implementation(block, implementation(block))
    return rdp


def matrix():
    return [[1.0 if row == column else 0.0 for column in range(4)] for row in range(4)]


def new_mesh(name, vertices=8, materials=()):
    packed = struct.pack(f"<{vertices * 3}f", *[((i * 7919) % 1000) / 1000.0 for i in range(vertices * 3)])
    return Mesh(name, {"vertex_count": vertices, "vertices": {"co": packed}, "smooth": [True, False], "id": (1, 2.5)},
                materials=materials)


def new_object(name, vertices=8, materials=()):
    return Object(name, {"location": [0.0, -0.0, 1.5], "rotation": (0.0, 0.0, 0.0), "scale": [1.0, 1.0, 1.0],
                         "matrix": matrix(), "modifiers": [], "props": {}},
                  mesh=[new_mesh(f"{name}.mesh", vertices, materials)])


def new_scene(objects, vertices=8):
    """A scene as a user would start with: world, one collection, shared material with an image."""
    image = Image("Image", {"size": [4, 4], "pixels": bytes(range(64))})
    material = Material("Material", {"color": (0.8, 0.8, 0.8, 1), "nodes": [{"type": "BSDF", "in": [0.5, True, None]}]},
                        images=[image])
    world = World("World", {"color": [0.05, 0.05, 0.05], "tags": [], "use_nodes": True})
    collection = Collection("Collection", {"instance_offset": [0.0, 0.0, 0.0]},
                            objects=[new_object(name, vertices, [material]) for name in objects])
    return Scene("Scene", {"frame_start": 1, "frame_end": 250, "render": {"engine": "CYCLES", "samples": 128}},
                 world=[world], children=[collection])


def canonical(value):
    kind = type(value)
    if value is None:
        return "None"
    if kind is bool:
        return str(value)
    if kind is int:
        return str(value)
    if kind is float:
        return f"{value!r}<{struct.pack('>d', value).hex()}>"
    if kind is str:
        return json.dumps(value)
    if kind in (bytes, bytearray):
        content = value.hex() if len(value) <= 64 else f"{len(value)}:{hashlib.sha256(value).hexdigest()}"
        return f"{kind.__name__}<{content}>"
    if kind is list:
        return "[" + ", ".join(map(canonical, value)) + "]"
    if kind is tuple:
        return "(" + ", ".join(map(canonical, value)) + ",)"
    if kind in (set, frozenset):
        return kind.__name__ + "{" + ", ".join(sorted(map(canonical, value))) + "}"
    if kind is dict:
        return "{" + ", ".join(f"{canonical(k)}: {canonical(v)}" for k, v in value.items()) + "}"
    return f"<<{kind.__module__}.{kind.__qualname__}>>"


def jsonable(value):
    """JSON where that says everything, canonical text where it does not."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, (list, tuple)):
        return [jsonable(item) for item in value]
    if isinstance(value, dict) and all(isinstance(key, str) for key in value):
        return {key: jsonable(item) for key, item in value.items()}
    if isinstance(value, (set, frozenset)):
        return sorted((jsonable(item) for item in value), key=str)
    return canonical(value)
