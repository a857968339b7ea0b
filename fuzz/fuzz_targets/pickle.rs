//! Whatever can be read can be written, and comes back the same.
#![no_main]

use blender_multiuser::wire::pickle::{Problem, decode, encode};
use bytes::Bytes;
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    if let Ok(value) = decode(&Bytes::copy_from_slice(data)) {
        match decode(&encode(&value).into()) {
            Ok(again) => assert!(again.identical(&value)),
            // A short way to write it may earn it less sharing.
            Err(error) => assert_eq!(error.problem, Problem::TooMuchSharing),
        }
    }
});
