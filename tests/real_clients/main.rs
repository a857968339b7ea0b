//! The real Multi-User client library against the real server: what issue and protocol ask for, as stories.
//!
//! Needs python3 (skipped loudly without it, failed with `CI` set); makes its own environment under `target/clients/`.
//! `TEST_SERVER=python` runs the suite against upstream's server instead, to tell a test's fault from the server's.

// Clippy takes only `#[test]` functions for tests, not what they call.
#![allow(clippy::unwrap_used)]

#[path = "../support/mod.rs"]
mod support;

mod disk;
mod editing;
mod handover;
mod hostile;
mod joining;
mod kills;
mod leaving;
mod login;
mod network;
mod presence;
mod restart;
mod restoring;
mod rights;
mod sizes;
mod storage;
mod storm;
mod versions;
