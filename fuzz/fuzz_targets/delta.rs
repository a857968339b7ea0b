//! Two length bytes (little-endian), a delta of that length, and the node it is applied to.
#![no_main]

use blender_multiuser::wire::delta::{Delta, Flavour};
use blender_multiuser::wire::pickle::{decode, encode};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    let Some((length, rest)) = data.split_first_chunk() else {
        return;
    };
    let Some((delta, base)) = rest.split_at_checked(u16::from_le_bytes(*length).into()) else {
        return;
    };
    let (Ok(delta), Ok(base)) = (
        Delta::decode(&Bytes::copy_from_slice(delta)),
        decode(&Bytes::copy_from_slice(base)),
    ) else {
        return;
    };
    for flavour in [Flavour::V5, Flavour::V8] {
        if let Ok(after) = delta.apply_as(&base, flavour) {
            let again = decode(&encode(&after).into()).expect("a folded node must be readable");
            assert!(again.identical(&after));
        }
    }
});
