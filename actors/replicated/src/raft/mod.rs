//! openraft 0.9 over the bus and the write-ahead log.
//!
//! # Why a leader may send before its own disk is done
//!
//! openraft's leader waits for its own flush before it sends an entry to anyone, so a commit costs
//! two fsyncs in a row. With `parallel_leader_fsync` the leader's log store reports an entry as
//! flushed at once, and the fsync of leader and followers overlap. openraft then counts the leader's
//! copy towards the majority before it is durable. The rules that keep Raft's promises:
//!
//! 1. **Nothing follows from a commit before the leader's disk has it.** A replica applies an index,
//!    and so answers its proposer, only once its own log is synced through it; a leader never tells
//!    a follower of a commit index beyond its own synced log. If both openraft's count and the
//!    leader's sync hold, a real majority has the entry on disk.
//! 2. **A leader that loses its unsynced tail must not go on as leader of the same term.** It could
//!    put another entry under a log id that followers already hold. openraft resumes leadership
//!    after a restart if the stored vote is committed to the node itself; the log store therefore
//!    reads such a vote back as uncommitted, and a new term is needed to lead again.
//! 3. **Followers answer only for what is synced**: an append is acknowledged after every promise
//!    of the group (entry, truncation, vote) is durable, also entries written earlier as a leader.
//! 4. **A vote is synced before it is told**, and because the log is written in order, so is every
//!    entry the voter or candidate claims to have.
//! 5. **Membership entries are never reported early.** The next change is admitted when the last
//!    one counts as committed; were that count wrong, two disjoint majorities could arise.
//!
//! While the leader lives, its memory behaves as if the tail were durable (it refuses candidates
//! with less). When it dies without the tail, rule 1 says nobody learned of it, and rule 2 that its
//! log ids are not used again.
//!
//! A snapshot is on disk before the log it replaces is purged: openraft asks for the purge first,
//! so the log store holds it back.

#![expect(clippy::result_large_err, reason = "openraft's storage traits return it by value")]

pub(crate) mod log_store;
pub(crate) mod network;
pub(crate) mod server;
pub(crate) mod snapshot_file;
pub(crate) mod state_machine;
pub(crate) mod types;
