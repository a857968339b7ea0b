//! Collaboration server for Blender's Multi-User add-on.
//!
//! Sockets (`net`) turn bytes into messages (`wire`), one session state machine (`session`) decides,
//! and sockets carry out what it decided.

pub mod admin;
pub mod alarm;
pub mod backups;
pub mod banner;
pub mod config;
pub mod logging;
pub mod net;
pub mod password;
pub mod platform;
pub mod server;
pub mod session;
pub mod store;
pub mod tools;
pub mod wire;
