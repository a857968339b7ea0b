//! Collaboration server for Blender's Multi-User add-on.
//!
//! Sockets (`net`) turn bytes into messages (`wire`), one session state machine (`session`) decides,
//! and sockets carry out what it decided.

pub mod net;
pub mod wire;
