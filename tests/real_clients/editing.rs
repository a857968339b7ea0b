//! Edits, deletions and their races: protocol sections 3.5 and 3.6.

use std::thread;
use std::time::Duration;

use serde_json::json;

use crate::support::{Need, Server, needs, wait_until};

/// Deletes of younger nodes by others than their creator are not echoed (about 5 s).
const NEWBORN: Duration = Duration::from_millis(5500);

#[test]
fn edits_reach_the_others_both_ways() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube", "Cone"], ["Bob"]) else {
        return;
    };
    // Which deepdiff somebody has shows in his first edit. Until then he gets whole nodes where deltas may not suit him.
    for (author, reader) in [(&alice, &bob), (&bob, &alice)] {
        author.edit("World", &format!("d['author'] = '{}'", author.name));
        reader.await_value("World", "d.get('author')", author.name.as_str());
    }

    alice.edit("Object:Cube", "d['location'][0] = 2.0"); // a delta
    bob.edit(
        "Object:Cone",
        "d['modifiers'].append({'type': 'BEVEL', 'width': 0.1})",
    );
    bob.push_full("Image", "d['pixels'] = bytes(64)"); // a whole node
    alice.push_full("Material", "d['color'] = (1.0, 0.0, 0.0, 1)");

    bob.await_value("Object:Cube", "d['location'][0]", 2.0);
    alice.await_value("Object:Cone", "d['modifiers'][0]['type']", "BEVEL");
    alice.await_value("Image", "d['pixels'] == bytes(64)", true);
    bob.await_value("Material", "d['color'][0]", 1.0);
    if needs(&[Need::Deltas]) {
        for (reader, node) in [(&alice, "Object:Cone"), (&bob, "Object:Cube")] {
            let node = reader.uuid(node);
            let deltas = reader.count_received(&[("type", "Commit"), ("uuid", &node)]);
            assert_eq!(deltas, 1, "for {} a delta came as a delta", reader.name);
        }
    }
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn values_keep_type_order_and_bits() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    for (node, author) in [
        ("Material", &alice),
        ("Material", &bob),
        ("Image", &alice),
        ("World", &bob),
    ] {
        author.edit(
            node,
            "d['odd'] = {'z': -0.0, 'a': float('inf'), 'nan': float('nan'), 'big': 2**200, 'neg': -2**70, 't': (1, [2.0, (3,)]), \
             's': {'x', 'y'}, 'f': frozenset([1, 2]), 'b': b'\\x00\\xff', 'surrogate': 'a\\udcffb', 'n': None, \
             'yes': True, 'one': 1, 'float': 1.0, 1: 'int key', (1, 2): 'tuple key', 'quote\\'\"': 0}",
        );
        author.edit(node, "d['odd']['later'] = [d.get('x'), 0.1, 1e308]; d['odd']['one'] = 1.0; d['odd'].pop('z', None)");
        author.edit(
            node,
            "d['odd']['s'].add('w'); d['odd']['t'] = (1, [2.5, (3,), None]); d['odd']['b'] += b'!'",
        );
    }
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn lists_grow_shrink_and_move() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube", "Cone", "Lamp"], ["Bob"]) else {
        return;
    };
    for author in [&alice, &bob] {
        author.edit(
            "Object:Cube",
            "d['modifiers'] = [{'n': i, 'v': [i] * 3} for i in range(12)]",
        );
        author.edit(
            "Object:Cube",
            "d['modifiers'].insert(3, {'n': 99, 'v': []}); d['modifiers'].pop(8)",
        );
        author.edit(
            "Object:Cube",
            "d['modifiers'].reverse(); del d['modifiers'][2:5]",
        );
        author.edit(
            "Collection",
            "b.links['objects'].reverse(); d['tags'] = [1, 1, 2]",
        ); // ignore_order, with repetition
        author.edit("Collection", "d['tags'] = [2, 1, 3, 3, 1]");
        author.edit("Mesh:Cube.mesh", "d['vertices']['co'] = d['vertices']['co'][:48] + bytes(96); d['id'] = (1, 2.5, 'three')");
        crate::support::assert_converged(&[&alice, &bob]);
    }
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn objects_are_added_and_deleted() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube", "Cone"], ["Bob"]) else {
        return;
    };
    bob.add("Tree");
    alice.await_value("Object:Tree", "d['name']", "Tree");
    alice.await_value("Collection", "len(d['objects'])", 3);
    alice.edit("Object:Tree", "d['location'][2] = 4.0");
    bob.await_value("Object:Tree", "d['location'][2]", 4.0);

    let (tree, mesh) = (alice.uuid("Object:Tree"), alice.uuid("Mesh:Tree.mesh"));
    thread::sleep(NEWBORN);
    alice.delete("Object:Tree");
    for client in [&alice, &bob] {
        client.await_gone(&tree);
        client.await_gone(&mesh);
    }
    bob.delete("Object:Cube");
    alice.await_gone("Object:Cube");
    assert!(alice.has("Material"), "what others still use stays");
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn ones_own_newborn_can_be_deleted_at_once() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    bob.add("Mistake");
    bob.delete("Object:Mistake");
    bob.await_gone("Object:Mistake");
    alice.await_gone("Object:Mistake");
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn removing_a_node_drops_it_from_all_dependencies() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    let image = alice.uuid("Image");
    alice.call("rm", json!({"ref": "Image"}));
    bob.await_gone(&image);
    alice.await_gone(&image);
    alice.call("rm", json!({"ref": "World"}));
    alice.await_gone("World");
    if needs(&[Need::RawFrames]) {
        // A repeat is harmless.
        bob.raw("command", &format!("[P(4), b'client', P('{image}')]"));
    }
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn crossing_edits_of_a_common_node_converge() {
    let Some((server, alice, [bob, carol])) = Server::studio(&["Cube"], ["Bob", "Carol"]) else {
        return;
    };
    for client in [&alice, &bob] {
        client.start_drag(&["World", "Collection", "Scene"], 60, 2.0);
    }
    // The same list, changed by two at the same time.
    for round in 0..10 {
        for client in [&alice, &bob, &carol] {
            let code = format!(
                "d['tags'] = d.get('tags', []) + ['{}{round}']; d['tags'][0:1] = d['tags'][1:2]",
                client.name
            );
            client.edit("World", &code);
        }
    }
    alice.finish_drag();
    bob.finish_drag();
    server.assert_settled(&[&alice, &bob, &carol]);
}

#[test]
fn crossing_changes_of_structure_converge() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    alice.edit(
        "World",
        "d['tree'] = {'list': [1, 2, 3], 'set': {1, 2}, 'dict': {'a': {'b': 1}}}",
    );
    bob.await_value("World", "len(d['tree'])", 3);
    for round in 0..4 {
        // One changes inside what the other takes away: deltas on which deepdiff raises.
        alice.edit("World", &format!("d['tree']['list'].append({round}); d['tree']['set'].add({round} + 10); d['tree']['dict']['a'] = {{'b': {round}}}"));
        bob.edit("World", "d['tree'] = {'list': None, 'set': 5, 'dict': []}");
        thread::sleep(Duration::from_millis(50));
        let reset = "d['tree'] = {'list': [1, 2, 3], 'set': {1, 2}, 'dict': {'a': {'b': 1}}}";
        alice.edit("World", reset);
        bob.edit("World", reset);
        thread::sleep(Duration::from_millis(100));
    }
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn a_newborn_survives_the_purge_of_others() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    for name in ["First", "Second", "Third"] {
        alice.call("add_loose", json!({"name": name}));
        wait_until("Bob to have the newborn", || {
            bob.has(&format!("Object:{name}"))
        });
        bob.edit("Scene", &format!("d['note'] = '{name}'")); // purges what no scene reaches in Bob's graph
        thread::sleep(Duration::from_millis(400));
        assert!(
            alice.has(&format!("Object:{name}")),
            "somebody else's purge deleted the newborn {name}"
        );
        alice.call("link", json!({"name": name}));
    }
    for client in [&alice, &bob] {
        client.await_value("Collection", "len(d['objects'])", 4);
        assert!(client.has("Object:First") && client.has("Mesh:Third.mesh"));
    }
    server.assert_settled(&[&alice, &bob]);
}

#[test]
fn deleting_what_another_edits_throws_nobody_out() {
    let Some((server, alice, [bob, carol])) =
        Server::studio(&["Cube", "Cone", "Lamp"], ["Bob", "Carol"])
    else {
        return;
    };
    thread::sleep(NEWBORN);
    for name in ["Object:Cube", "Object:Cone"] {
        alice.start_drag(&[name], 60, 1.5);
        carol.start_drag(&["World", name], 60, 1.5);
        thread::sleep(Duration::from_millis(600));
        bob.delete(name);
        alice.finish_drag();
        carol.finish_drag();
        for client in [&alice, &bob, &carol] {
            client.await_gone(name);
        }
    }
    // Taken away without a word to its parents: they are re-sent without it, or it stays.
    alice.start_drag(&["Object:Lamp", "Collection"], 60, 1.5);
    thread::sleep(Duration::from_millis(500));
    bob.call("rm", json!({"ref": "Mesh:Lamp.mesh"}));
    alice.finish_drag();
    server.assert_settled(&[&alice, &bob, &carol]);
}

#[test]
fn an_edit_of_an_unknown_node_is_answered_with_its_deletion() {
    if !needs(&[Need::RawFrames]) {
        return;
    }
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    let unknown = "00000000-1111-2222-3333-444444444444";
    bob.raw(
        "data",
        &format!("[P(1), b'{unknown}', P([]), Delta(DeepDiff({{'a': 1}}, {{'a': 2}})).dumps()]"),
    );
    wait_until("Bob to be told", || {
        bob.count_received(&[("type", "Delete"), ("data", unknown)]) > 0
    });
    server.assert_works(&[&bob, &alice]);
    assert_eq!(
        alice.count_received(&[("uuid", unknown)]),
        0,
        "nothing of it goes further"
    );
    assert_eq!(
        alice.count_received(&[("type", "Delete"), ("data", unknown)]),
        0
    );
}

#[test]
fn big_nodes_pass() {
    let Some((server, alice, [bob])) = Server::studio(&["Cube"], ["Bob"]) else {
        return;
    };
    alice.edit(
        "Mesh:Cube.mesh",
        "d['vertices']['co'] = bytes(range(256)) * 40000",
    ); // 10 MB
    bob.await_value("Mesh:Cube.mesh", "len(d['vertices']['co'])", 10_240_000);
    bob.edit("Mesh:Cube.mesh", "d['smooth'] = [True] * 20000");
    alice.await_value("Mesh:Cube.mesh", "len(d['smooth'])", 20_000);
    server.assert_settled(&[&alice, &bob]);
}
