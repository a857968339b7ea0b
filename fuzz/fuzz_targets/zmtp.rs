//! Greeting, frames and commands of a hostile peer: no panic, and the same messages however the bytes are split.
#![no_main]

use blender_multiuser::net::frame::{Decoder, Framing};
use blender_multiuser::net::zmtp::Greeting;
use blender_multiuser_fuzz::messages;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    let read = |step| messages(Framing::Zmtp(Decoder::default()), bytes, step);
    let _ = Greeting::parse(bytes);
    let whole = read(usize::MAX);
    let step = 1 + usize::from(bytes.first().copied().unwrap_or(0));
    let split = read(step);
    assert_eq!(whole.1, split.1);
    if whole.1 {
        assert_eq!(whole.0, split.0);
    }
});
