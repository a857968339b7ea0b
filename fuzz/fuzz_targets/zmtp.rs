//! Greeting, frames and commands of a hostile peer: no panic, and the same messages however the bytes are split.
#![no_main]

use blender_multiuser::net::frame::{Decoder, FrameLimits, Incoming};
use blender_multiuser::net::zmtp::Greeting;
use bytes::BufMut;
use libfuzzer_sys::fuzz_target;

const LIMITS: FrameLimits = FrameLimits {
    frame: 1 << 20,
    message: 1 << 20,
    chunks: 64,
};

fn messages(bytes: &[u8], step: usize) -> (Vec<Incoming>, bool) {
    let mut decoder = Decoder::default();
    let mut found = Vec::new();
    let mut rest = bytes;
    loop {
        match decoder.next(&LIMITS) {
            Ok(Some(incoming)) => found.push(incoming),
            Err(_) => return (found, false),
            Ok(None) if rest.is_empty() => return (found, true),
            Ok(None) => {
                let mut space = decoder.space();
                let read = rest.len().min(space.remaining_mut()).min(step);
                space.put_slice(&rest[..read]);
                decoder.filled(read);
                rest = &rest[read..];
            }
        }
    }
}

fuzz_target!(|bytes: &[u8]| {
    let _ = Greeting::parse(bytes);
    let whole = messages(bytes, usize::MAX);
    let step = 1 + usize::from(bytes.first().copied().unwrap_or(0));
    let split = messages(bytes, step);
    assert_eq!(whole.1, split.1);
    if whole.1 {
        assert_eq!(whole.0, split.0);
    }
});
