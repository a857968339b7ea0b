//! `check` looks in a process of its own. The `zeromq` crate takes any length of a frame for true, so what greets as ZeroMQ does and
//! then talks nonsense can have it ask for more memory than there is, which ends a process where nothing can be caught.

use std::env;
use std::io::{self, Write};
use std::process::{Command, ExitCode, Stdio};

use crate::tools::print;

use super::Target;

/// In the environment of the process that looks.
const LOOKING: &str = "BLENDER_MULTIUSER_CHECK";

/// Has another process of this program look, and returns its exit code; `None`: this one is to look, since it is that process, or
/// since there can be no other.
pub(super) fn look(target: &Target) -> Option<ExitCode> {
    if env::var_os(LOOKING).is_some() {
        return None;
    }
    // What it prints is seen at once; of its errors only those that it has put into words.
    let looked = Command::new(env::current_exe().ok()?)
        .args(env::args_os().skip(1))
        .env(LOOKING, "yes")
        .stdin(Stdio::null())
        .stdout(Stdio::inherit())
        .stderr(Stdio::piped())
        .output()
        .ok()?;
    if let Some(code @ 0..=2) = looked.status.code() {
        let _ = io::stderr().write_all(&looked.stderr);
        return u8::try_from(code).ok().map(ExitCode::from);
    }
    let _ = print(format!(
        "Result: an artist at this computer CANNOT connect.\n  Wrong port: what answers at {} begins as ZeroMQ does, then talks \
         nonsense; it is not a Multi-User server. Ask whoever runs the server for its port.\n",
        target.host
    ));
    Some(ExitCode::FAILURE)
}
