//! Gives freed memory back to the machine: a node runs for months, and kernels come and go on it.
//!
//! glibc keeps what is freed between blocks that live on, in as many arenas as threads have run. Few
//! arenas and a trim now and then keep a node at what it holds.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// How often memory is given back. A trim of a node's heap takes some milliseconds.
const TRIM_EVERY: Duration = Duration::from_secs(20);

/// Trims for as long as it is polled.
pub(crate) async fn give_back() {
    let mut every = interval(TRIM_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        every.tick().await;
        if tokio::task::spawn_blocking(trim).await.is_err() {
            return;
        }
    }
}

/// Has the process use few arenas. To be called before it has threads.
pub fn use_few_arenas() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "no safe wrapper of mallopt exists")]
    // SAFETY: `mallopt` only sets a parameter of the allocator; there is no other thread yet.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, 2);
    }
}

fn trim() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "no safe wrapper of malloc_trim exists")]
    // SAFETY: `malloc_trim` takes the allocator's own locks and touches no live block.
    unsafe {
        libc::malloc_trim(0);
    }
}
