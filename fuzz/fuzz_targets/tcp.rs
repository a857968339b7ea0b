//! Handshake and frames of a hostile peer of the tcp dialect: no panic, and the same messages however the bytes are split.
#![no_main]

use blender_multiuser::net::frame::{FrameLimits, Incoming};
use blender_multiuser::net::tcp::{Hello, TcpDecoder};
use bytes::{BufMut, BytesMut};
use libfuzzer_sys::fuzz_target;

const LIMITS: FrameLimits = FrameLimits {
    frame: 1 << 20,
    message: 1 << 20,
    chunks: 64,
};

fn messages(bytes: &[u8], step: usize) -> (Vec<Incoming>, bool) {
    let mut decoder = TcpDecoder::default();
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
    let mut hello = BytesMut::from(bytes);
    let before = hello.len();
    match Hello::take(&mut hello) {
        Ok(Some(found)) => assert_eq!(before - hello.len(), found.identity.len() + 5),
        Ok(None) | Err(_) => assert_eq!(hello.len(), before),
    }
    let whole = messages(bytes, usize::MAX);
    let step = 1 + usize::from(bytes.first().copied().unwrap_or(0));
    assert_eq!(whole, messages(bytes, step));
});
