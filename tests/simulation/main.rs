//! Simulated clients on the session: random studios and stories.
//!
//! `SEEDS=20000 cargo test --release --test simulation` runs more of the random ones, `FROM=2000` others, `SEED=17` one of them with a trace.
#![allow(clippy::unwrap_used)]

mod client;
mod delta;
mod dialects;
mod figures;
mod lines;
mod look;
mod network;
mod random;
mod restarts;
mod rules;
mod spelling;
mod stories;
mod stories_dialects;
mod stories_editing;
mod stories_hostile;
mod stories_login;
mod stories_presence;
mod stories_restart;
mod stories_restore;
mod stories_rights;
mod user;
mod world;

#[test]
fn random_studios_converge() {
    play_all(200, random::run);
}

#[test]
fn random_studios_converge_over_restarts() {
    play_all(100, random::run_with_restarts);
}

fn play_all(count: u64, run: fn(u64, bool) -> Vec<String>) {
    let number = |name| std::env::var(name).ok()?.parse().ok();
    if let Some(seed) = number("SEED") {
        let faults = run(seed, true);
        assert!(faults.is_empty(), "{}", faults.join("\n"));
        return;
    }
    let seeds: u64 = number("SEEDS").unwrap_or(count);
    let mut failed = Vec::new();
    let from: u64 = number("FROM").unwrap_or(0);
    for seed in from..from.saturating_add(seeds) {
        let result = std::panic::catch_unwind(|| run(seed, false));
        let faults = result.unwrap_or_else(|_| vec!["panicked".into()]);
        if !faults.is_empty() {
            eprintln!(
                "SEED={seed}: {}",
                faults[0].chars().take(300).collect::<String>()
            );
            failed.push(seed);
        }
    }
    assert!(
        failed.is_empty(),
        "{} of {seeds} seeds fail: {failed:?}",
        failed.len()
    );
}
