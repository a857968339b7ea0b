//! Commands and publications of a hostile four-socket peer: no panic, and what is accepted can be sent on.
#![no_main]

use blender_multiuser::wire::four_socket::{Assembler, decode_publication, is_command};
use blender_multiuser::wire::message::Outgoing;
use blender_multiuser::wire::{Channel, Dialect, Inbound, Outbound, decode};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|frames: Vec<Vec<u8>>| {
    let frames: Vec<Bytes> = frames.into_iter().map(Bytes::from).collect();
    let _ = is_command(&frames);
    let _ = decode(Dialect::Dealer, Channel::Command, &frames);
    if let Ok(Inbound::Node(node)) = decode_publication(&frames) {
        let sent = Outgoing::new(Outbound::Node(node));
        assert_eq!(sent.messages(Dialect::FourSocket).count(), 2);
    }
    let mut assembler = Assembler::default();
    for frame in &frames {
        let _ = assembler.take(vec![frame.clone()], 1 << 16);
    }
    let _ = assembler.take(frames, 1 << 16);
});
