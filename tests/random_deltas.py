"""Random deltas and what deepdiff makes of them, as a .deltas file on stdout: SEED COUNT.

A third are applied to another value than they were made for, as crossing edits are; a quarter were made by no
DeepDiff at all. Metadata: whether it raises. Runs with deepdiff 5.7.0 and 8.1.1.
"""
import json
import logging
import pickle
import random
import struct
import sys
import warnings

import deepdiff
from deepdiff import DeepDiff, Delta
from deepdiff.path import _path_to_elements
from deepdiff.serialization import pickle_dump

logging.disable(logging.CRITICAL)
warnings.simplefilter('ignore')
OLD = deepdiff.__version__.startswith('5')
RANDOM = random.Random(int(sys.argv[1]))
choice, chance = RANDOM.choice, lambda p: RANDOM.random() < p

PLAIN_KEYS = ['a', 'b', 'c', 'name', 'vertices', 'k1', 'x y', 0, 1, 2]
NASTY_KEYS = [
    "it's", 'say "hi"', 'both\'"', 'a.b', 'a.b[0]', "']", "root['a']", '\\', 'a\\b', '', '.', 'new\nline', 'tab\tkey',
    '日本', '😀', '__private', 'None', '1', "b'k'", 'x\U0001d1c0y', '\ud800x', -3, True, None, 1.5, 2**70, ('n', 2),
    (1,), b'k', b"k'q", frozenset([1]), 1e100, float('inf'),
]
LEAVES = [
    0, 1, 2, 7, 300, -1, 2**63, -2**70, 0.0, -0.0, 1.0, 1.5, 1e-7, 1e16, float('nan'), '', 'a', 'abc', '12', '1.5',
    ' 7 ', '1_0', 'é', '日本', '\ud801', b'', b'abc', b'\xff\x00', True, False, None, frozenset(), frozenset([1, 'a']),
]
MEMBERS = [1, 2, 3, 'a', 'z', (1, 2), None, True, 0]
TYPES = [str, int, float, bool, list, tuple, set, frozenset, dict, bytes, type(None)]


def value(depth, nasty):
    kind = RANDOM.random()
    if depth <= 0 or kind < .35:
        return {choice(MEMBERS) for _ in range(3)} if chance(.1) else choice(LEAVES)
    if kind < .75:
        items = [value(depth - 1, nasty) for _ in range(RANDOM.randint(0, 5))]
        return items if kind < .6 else tuple(items)
    keys = PLAIN_KEYS + NASTY_KEYS if nasty else PLAIN_KEYS
    return {choice(keys): value(depth - 1, nasty) for _ in range(RANDOM.randint(0, 5))}


def changed(old, depth, nasty):
    if chance(.08):
        try:
            return choice(TYPES)(old)
        except Exception:
            return choice(LEAVES)
    if isinstance(old, dict):
        new = {k: changed(v, depth - 1, nasty) if chance(.5) else v for k, v in old.items() if chance(.9)}
        if chance(.3):
            new.update(value(1, nasty) if isinstance(value(1, nasty), dict) else {'new': value(2, nasty)})
        return new
    if isinstance(old, (list, tuple)):
        new = [changed(v, depth - 1, nasty) if chance(.35) else v for v in old if chance(.88)]
        while chance(.3):
            new.insert(RANDOM.randint(0, len(new)), choice(new) if new and chance(.3) else value(1, nasty))
        if chance(.1):
            RANDOM.shuffle(new)
        return type(old)(new)
    if isinstance(old, (set, frozenset)):
        return type(old)({v for v in old if chance(.7)} | {choice(MEMBERS)})
    return old + 1 if isinstance(old, (int, float)) and chance(.6) else choice(LEAVES)


def paths(node, path='root'):
    yield path
    if isinstance(node, dict):
        for key, item in node.items():
            quoted = f'"{key}"' if "'" in str(key) else f"'{key}'"
            yield from paths(item, f'{path}[{quoted if isinstance(key, str) else repr(key)}]')
    elif isinstance(node, (list, tuple)):
        for index, item in enumerate(node):
            yield from paths(item, f'{path}[{index}]')
        yield f'{path}[{len(node)}]'


def made_up(node):
    """A delta that DeepDiff would not make."""
    known = list(paths(node)) + ["root['no']", 'root[-1]', None, 'root[None]', 'root.a', 'root[1.0]']
    actions = {}

    def lookup(path):
        try:
            found = {'root': node}['root']
            for key, _ in _path_to_elements(path)[1:]:
                found = found[key]
            return found
        except Exception:
            return choice(LEAVES)

    def what(action, path):
        if action == 'values_changed':
            return {'new_value': value(2, True)}
        if action == 'type_changes':
            new = {'new_value': value(1, True)} if chance(.3) else {}
            return {'old_type': choice(TYPES), 'new_type': choice(TYPES), **new}
        if action.startswith('set'):
            return {choice(MEMBERS) for _ in range(2)}
        if action.endswith('indexes'):
            return {RANDOM.randint(0, 5): lookup(f'{path}[{RANDOM.randint(0, 3)}]') for _ in range(2)}
        if action == '_iterable_opcodes':
            return [
                deepdiff.helper.Opcode(choice(['insert', 'delete', 'equal', 'replace']), at, at + 2, at, at + 2, None,
                                       choice([None, [value(1, True)]]))
                for at in range(RANDOM.randint(0, 3))
            ]
        return lookup(path) if chance(.5) else value(2, True)

    names = [
        'values_changed', 'type_changes', 'set_item_added', 'set_item_removed', 'iterable_item_added',
        'iterable_item_removed', 'iterable_items_added_at_indexes', 'iterable_items_removed_at_indexes',
        'dictionary_item_added', 'dictionary_item_removed', 'attribute_added',
    ] + ([] if OLD else ['_iterable_opcodes'])
    for action in RANDOM.sample(names, RANDOM.randint(1, 3)):
        some = [choice(known) for _ in range(RANDOM.randint(1, 3))]
        actions[action] = {path: what(action, path) for path in some}
    return actions


def depends_on_hash_seed(actions):
    """5.7.0 visits containers in the order of a set, which matters where one is inside of another."""
    visited = [str(p) for name, items in actions.items() if name.endswith('indexes') for p in items]
    return OLD and len(visited) > 1 and any(a != b and b.startswith(a) for a in visited for b in visited)


def case():
    nasty = chance(.5)
    old = {'a': value(RANDOM.randint(1, 4), nasty), 'b': value(2, nasty)}
    if chance(.15):
        shared = value(2, nasty)
        old.update(s1=shared, s2=[shared, {'a': shared}])
    old = pickle.loads(pickle.dumps(old, 4))
    if chance(.25):
        delta = pickle_dump(made_up(old))
    elif chance(.4):
        delta = Delta(DeepDiff(old, changed(old, 5, nasty), ignore_order=True, report_repetition=True)).dumps()
    else:
        delta = Delta(DeepDiff(old, changed(old, 5, nasty), cache_size=5000)).dumps()
    if depends_on_hash_seed(Delta(delta).diff):
        raise ValueError('no one result')
    base = pickle.dumps(old if chance(.67) else changed(old, 5, nasty), 4)
    try:
        after, raises = pickle.dumps(pickle.loads(base) + Delta(delta), 4), None
    except Exception as error:
        after, raises = b'', repr(error)
    return base, delta, after, raises


out = sys.stdout.buffer
out.write(b'MUDELTA1')
count = 0
while count < int(sys.argv[2]):
    try:
        base, delta, after, raises = case()
    except Exception:
        continue  # DeepDiff itself fails on some values.
    metadata = json.dumps({'n': count, 'raises': raises, 'deepdiff': deepdiff.__version__}).encode()
    out.write(struct.pack('<I', 4))
    for part in (metadata, base, delta, after):
        out.write(struct.pack('<I', len(part)) + part)
    count += 1
