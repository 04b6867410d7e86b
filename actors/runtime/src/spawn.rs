//! The one place where actors are spawned, so that the test universe sees each of them.

use ractor::{Actor, ActorCell, ActorRef, SpawnErr, concurrency::JoinHandle};

/// Starts an actor nobody supervises: a root, or a probe in a test.
///
/// # Errors
/// If its `pre_start` fails or panics.
pub async fn spawn<A: Actor>(
    name: Option<String>,
    actor: A,
    args: A::Arguments,
) -> Result<(ActorRef<A::Msg>, JoinHandle<()>), SpawnErr> {
    let started = Actor::spawn(name, actor, args).await?;
    track(started.0.get_cell());
    Ok(started)
}

/// Starts an actor whose end `supervisor` is told of.
///
/// # Errors
/// If its `pre_start` fails or panics, or the supervisor is stopping.
pub async fn spawn_linked<A: Actor>(
    name: Option<String>,
    actor: A,
    args: A::Arguments,
    supervisor: ActorCell,
) -> Result<(ActorRef<A::Msg>, JoinHandle<()>), SpawnErr> {
    let started = Actor::spawn_linked(name, actor, args, supervisor).await?;
    track(started.0.get_cell());
    Ok(started)
}

#[cfg(any(test, feature = "universe"))]
fn track(cell: ActorCell) {
    crate::universe::track(cell);
}

#[cfg(not(any(test, feature = "universe")))]
fn track(_: ActorCell) {}
