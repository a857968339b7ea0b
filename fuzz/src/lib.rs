//! What fuzz targets share.

use blender_multiuser::net::frame::Framing;
use blender_multiuser::net::intake::{FrameLimits, Incoming};
use bytes::BufMut;

const LIMITS: FrameLimits = FrameLimits {
    frame: 1 << 20,
    message: 1 << 20,
    chunks: 64,
};

/// What comes out of bytes that are read in pieces of `step`, and whether it ends without an error.
pub fn messages(mut framing: Framing, bytes: &[u8], step: usize) -> (Vec<Incoming>, bool) {
    let mut found = Vec::new();
    let mut rest = bytes;
    loop {
        match framing.next(&LIMITS) {
            Ok(Some(incoming)) => found.push(incoming),
            Err(_) => return (found, false),
            Ok(None) if rest.is_empty() => return (found, true),
            Ok(None) => {
                let mut space = framing.intake().space();
                let read = rest.len().min(space.remaining_mut()).min(step);
                space.put_slice(&rest[..read]);
                framing.intake().filled(read);
                rest = &rest[read..];
            }
        }
    }
}
