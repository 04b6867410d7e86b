//! Supervision on ractor: supervisors with OTP's rules, bounded addresses that survive restarts,
//! and a test universe that fails on panicked and leaked actors.
//!
//! Invariant: when to restart is decided in `callboard-policy`; here it is only carried out.
//!
//! # What a restart loses
//! A restarted actor begins with fresh arguments. Lost are its state in memory, every message in
//! its mailbox (an ask ends as [`AskError::Lost`], "maybe executed"; a tell is silently gone) and
//! its timers. Kept are its name, its [`Address`] and what it stored elsewhere. So every actor's
//! `//!` header has a paragraph that begins "A restart loses" and says what, and from where it is
//! rebuilt; and whoever tells instead of asking must be able to send again. A restarted supervisor
//! starts the children of its list and forgets those added later: whoever added them listens for
//! [`SupervisorEvent::Started`] and adds them again.

mod address;
mod child;
mod spawn;
mod supervisor;
#[cfg(any(test, feature = "universe"))]
pub mod universe;

pub use address::{Address, AskError, Mail, Permit, Presence, TellError};
pub use child::{ChildSpec, Restart};
pub use spawn::{spawn, spawn_linked};
pub use supervisor::{
    ChildInfo, ChildState, OnExceeded, StartError, SupervisorError, SupervisorEvent,
    SupervisorHandle, SupervisorSettings, spawn_supervisor,
};
