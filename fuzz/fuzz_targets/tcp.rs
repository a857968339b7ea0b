//! Handshake and frames of a hostile peer of the tcp dialect: no panic, and the same messages however the bytes are split.
#![no_main]

use blender_multiuser::net::frame::Framing;
use blender_multiuser::net::tcp::{Hello, TcpDecoder};
use blender_multiuser_fuzz::messages;
use bytes::BytesMut;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let read = |step| messages(Framing::Tcp(TcpDecoder::default()), bytes, step);
    let mut hello = BytesMut::from(bytes);
    let before = hello.len();
    match Hello::take(&mut hello) {
        Ok(Some(found)) => assert_eq!(before - hello.len(), found.identity.len() + 5),
        Ok(None) | Err(_) => assert_eq!(hello.len(), before),
    }
    let whole = read(usize::MAX);
    let step = 1 + usize::from(bytes.first().copied().unwrap_or(0));
    assert_eq!(whole, read(step));
});
