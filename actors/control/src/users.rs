//! The verbs about users and access tokens. Only the leader comes here.

use std::sync::atomic::{AtomicU64, Ordering};

use callboard_policy::failure::NodesView;
use callboard_protocol::{
    Envelope, Fault, FaultCode, NodeId,
    control::NodeHealth,
    users::{
        AddToken, AddUser, ListUsers, RemoveUser, RevokeToken, UserEntry, UserList, UsersChanged,
    },
};
use callboard_replicated::Members;

use crate::{
    actor::Context,
    desired::{Command, DesiredState, FORMAT_WITH_USERS, Outcome, UserChange},
    handlers::{propose, unexpected},
    listing,
    request::check_token,
};

pub(crate) async fn add_user(
    context: &Context,
    envelope: &Envelope,
    request: AddUser,
) -> Result<UserEntry, Fault> {
    let AddUser { user, role } = request;
    change(context, envelope, Command::AddUser { user, role }).await
}

pub(crate) async fn remove_user(
    context: &Context,
    envelope: &Envelope,
    request: RemoveUser,
) -> Result<UserEntry, Fault> {
    change(context, envelope, Command::RemoveUser { user: request.user }).await
}

pub(crate) async fn add_token(
    context: &Context,
    envelope: &Envelope,
    request: AddToken,
) -> Result<UserEntry, Fault> {
    let AddToken { user, id, entry } = request;
    check_token(&entry)?;
    change(context, envelope, Command::AddToken { user, id, entry }).await
}

pub(crate) async fn revoke_token(
    context: &Context,
    envelope: &Envelope,
    request: RevokeToken,
) -> Result<UserEntry, Fault> {
    change(context, envelope, Command::RevokeToken { id: request.id }).await
}

pub(crate) fn list_users(context: &Context, asked: &ListUsers) -> UserList {
    context.args.group.read(|state| listing::page_of_users(state, asked))
}

/// Has the group change a user, and tells of it.
async fn change(
    context: &Context,
    envelope: &Envelope,
    command: Command,
) -> Result<UserEntry, Fault> {
    let args = &context.args;
    let view = args.nodes.borrow().clone();
    read_by_all(&args.group.members(), &view, &args.node, ("users", FORMAT_WITH_USERS))?;
    match propose(context, command).await? {
        Outcome::User { entry, change } => {
            if let Some(change) = change {
                let (action, detail) = described(&change, &entry);
                tracing::info!(user = %entry.user, action, "the users change");
                tell(context).await;
                context.audit(envelope, action, &entry.user, detail).await;
            }
            Ok(entry)
        }
        outcome => Err(unexpected(outcome)),
    }
}

/// The version of the users that gateways were last told of by this actor.
#[derive(Debug, Default)]
pub(crate) struct Told(AtomicU64);

/// Tells gateways to look at the users again, if they have changed since they were last told: also
/// what a leader that ended changed and did not get to tell. Otherwise a gateway would let in a token
/// that is revoked.
pub(crate) async fn tell(context: &Context) {
    let version = context.args.group.read(DesiredState::users_version);
    if context.users_told.0.fetch_max(version, Ordering::Relaxed) < version {
        context.announce("users_changed", &UsersChanged { version }).await;
    }
}

/// The action and detail of an audit.
fn described(change: &UserChange, entry: &UserEntry) -> (&'static str, String) {
    match change {
        UserChange::Added => ("user_added", format!("as {}", entry.role)),
        UserChange::RoleChanged => ("user_role_changed", format!("to {}", entry.role)),
        UserChange::Removed => ("user_removed", format!("with {} tokens", entry.tokens.len())),
        UserChange::TokenAdded(id) => ("token_added", format!("token {id}")),
        UserChange::TokenRevoked(id) => ("token_revoked", format!("token {id}")),
    }
}

/// A member that cannot read a command about something new would stop at it (ADR 019), and a majority
/// of those would stop the control plane. So none is written while such a member may be there: one
/// that does not read `format`, which came with `what`. Nodes do not go back to an older version, so
/// what was heard of one stays true; one that is gone counts for nothing now, and stops alone if it
/// comes back as it was (ADR 020).
pub(crate) fn read_by_all(
    members: &Members,
    view: &NodesView,
    me: &NodeId,
    (what, format): (&str, u16),
) -> Result<(), Fault> {
    let nodes = members.voters.values().chain(members.learners.values());
    for node in nodes.filter(|node| *node != me) {
        let seen = view.nodes.get(node);
        if seen.is_some_and(|seen| seen.health == NodeHealth::Gone) {
            continue;
        }
        let Some(beat) = seen.and_then(|seen| seen.last_beat.as_ref()) else {
            let text = format!(
                "{node} has not been heard yet, so it is not known whether its version of \
                 callboard knows {what}: see `callboard nodes`, and try again once it is up"
            );
            return Err(Fault::new(FaultCode::Unavailable, text));
        };
        if beat.desired_format < format {
            let text = format!(
                "{node} runs a version of callboard that does not know {what}: restart it in this \
                 version first (docs/operations.md, Upgrades)"
            );
            return Err(Fault::new(FaultCode::Conflict, text));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use callboard_policy::failure::NodeView;
    use callboard_protocol::{DiskId, Incarnation, ReplicaId};

    use super::*;
    use crate::desired::FORMAT;

    fn node(n: u64) -> NodeId {
        NodeId::new(format!("node-{n}")).unwrap()
    }

    /// What is known of a node whose beats name this format; `None` if there were none.
    fn seen(n: u64, health: NodeHealth, format: Option<u16>) -> (NodeId, NodeView) {
        let disk = DiskId::generate();
        let beat = |format: u16| {
            let beat = serde_json::json!({
                "node": node(n), "disk": disk, "incarnation": 1, "number": 1, "pid": 1,
                "host": "h", "replicas": 1, "running_cells": 0, "epoch": 1, "suspects": [],
                "python_problem": null, "desired_format": format,
            });
            serde_json::from_value(beat).unwrap()
        };
        let (incarnation, last_beat) = (Incarnation(1), format.map(beat));
        (node(n), NodeView { health, incarnation, disk, silent_ms: 0, how: None, last_beat })
    }

    fn asked(second: Option<(NodeHealth, Option<u16>)>) -> Result<(), Fault> {
        let voters = (1..=3).map(|n| (ReplicaId(n), node(n))).collect();
        let members = Members { voters, learners: Default::default() };
        let mut view = NodesView::default();
        view.nodes.extend([seen(3, NodeHealth::Up, Some(FORMAT))]);
        view.nodes.extend(second.map(|(health, format)| seen(2, health, format)));
        read_by_all(&members, &view, &node(1), ("users", FORMAT))
    }

    #[test]
    fn nothing_about_users_is_written_while_a_member_may_be_of_a_version_that_cannot_read_it() {
        use NodeHealth::{Gone, Suspected, Up};
        assert_eq!(asked(Some((Up, Some(FORMAT)))), Ok(()));
        assert_eq!(asked(Some((Suspected, Some(FORMAT + 1)))), Ok(()));
        for health in [Up, Suspected] {
            let fault = asked(Some((health, Some(0)))).unwrap_err();
            assert_eq!(fault.code, FaultCode::Conflict, "{fault}");
            assert!(fault.message.contains("node-2 runs a version"), "{fault}");
        }
        for unheard in [None, Some((Suspected, None))] {
            let fault = asked(unheard).unwrap_err();
            assert_eq!(fault.code, FaultCode::Unavailable, "{fault}");
        }
        for format in [None, Some(0)] {
            assert_eq!(asked(Some((Gone, format))), Ok(()), "it stops alone if it comes back");
        }
    }
}
