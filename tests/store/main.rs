//! The store: what is written comes back, whatever happens in between.
// Who does not want a receipt drops it.
#![allow(clippy::unwrap_used, clippy::let_underscore_future)]

#[cfg(unix)]
mod access;
#[path = "../corpus/mod.rs"]
mod corpus;
mod damage;
mod faults;
mod faulty;
mod files;
mod folding;
mod power;
mod restart;
mod restoring;
mod scenes;
mod starts;
#[cfg(unix)]
mod stuck;
// Real clients are started by Unix means.
#[cfg(unix)]
#[path = "../support/mod.rs"]
mod support;
