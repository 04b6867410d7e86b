//! Gives freed memory back to the machine: a node runs for months, and kernels come and go on it.
//!
//! glibc keeps what is freed between blocks that live on, in as many arenas as threads have run. Few
//! arenas and a trim now and then keep a node at what it holds.

use std::time::Duration;

use tokio::time::{MissedTickBehavior, interval};

/// How often memory is given back. A trim of a node's heap takes some milliseconds.
const TRIM_EVERY: Duration = Duration::from_secs(20);
/// What is free in the heap may move by so much before it is worth a trim: an idle node's heap does not.
const WORTH_BYTES: usize = 1 << 20;

/// Trims for as long as it is polled.
pub(crate) async fn give_back() {
    let mut every = interval(TRIM_EVERY);
    every.set_missed_tick_behavior(MissedTickBehavior::Delay);
    // A trim moves nothing that is free: it gives the pages below it back.
    let mut free_at_last = 0;
    loop {
        every.tick().await;
        let free = free_bytes();
        if free.abs_diff(free_at_last) < WORTH_BYTES {
            continue;
        }
        free_at_last = free;
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

/// Bytes that are free in the heap.
fn free_bytes() -> usize {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "no safe wrapper of mallinfo2 exists")]
    // SAFETY: `mallinfo2` takes the allocator's own locks and only counts.
    let free = unsafe { libc::mallinfo2() }.fordblks;
    #[cfg(not(target_env = "gnu"))]
    let free = 0;
    free
}

fn trim() {
    #[cfg(target_env = "gnu")]
    #[expect(unsafe_code, reason = "no safe wrapper of malloc_trim exists")]
    // SAFETY: `malloc_trim` takes the allocator's own locks and touches no live block.
    unsafe {
        libc::malloc_trim(0);
    }
}
