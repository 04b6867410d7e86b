//! The one place where subjects are built and parsed.
//!
//! `cb.v1.<cluster>.<kind>.<id>.<verb>`, `cb.v1.<cluster>.evt.<kind>.<id>.<event>` and
//! `cb.v1.<cluster>.raft.<group>.<replica>.<rpc>`. The id stands before the verb, so that one
//! wildcard subscription serves an actor.

use std::{fmt, str::FromStr};

use crate::ids::{ClusterId, GroupId, ReplicaId, is_token};

/// Why a text is not a subject of this protocol.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("'{text}' is not a Callboard subject: {why}")]
pub struct SubjectError {
    text: String,
    why: &'static str,
}

/// What kind of actor a subject addresses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum ActorKind {
    /// A notebook kernel as a whole; whichever replica is responsible answers.
    Kernel,
    /// One replica of a kernel; its id is `<kernel>-<replica>`.
    Replica,
    /// A node process.
    Node,
    /// The control plane; whichever member leads answers.
    Control,
}

impl ActorKind {
    const ALL: [Self; 4] = [Self::Kernel, Self::Replica, Self::Node, Self::Control];

    fn token(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Replica => "replica",
            Self::Node => "node",
            Self::Control => "control",
        }
    }

    fn parse(token: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.token() == token)
    }
}

impl fmt::Display for ActorKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.token())
    }
}

/// An exact subject.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Subject {
    /// A command or query to an actor.
    Actor {
        /// The cluster.
        cluster: ClusterId,
        /// What is addressed.
        kind: ActorKind,
        /// Which one; a token.
        id: String,
        /// What it shall do; a token.
        verb: String,
    },
    /// Something that happened to an actor, in the past tense.
    Event {
        /// The cluster.
        cluster: ClusterId,
        /// To what kind of actor.
        kind: ActorKind,
        /// To which one; a token.
        id: String,
        /// What happened; a token.
        event: String,
    },
    /// A Raft message to one member of a group.
    Raft {
        /// The cluster.
        cluster: ClusterId,
        /// The Raft group.
        group: GroupId,
        /// The member.
        replica: ReplicaId,
        /// The procedure; a token.
        rpc: String,
    },
}

/// A set of subjects to subscribe to.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum SubjectPattern {
    /// Exactly one subject.
    Exact(Subject),
    /// Every verb of one actor.
    Verbs {
        /// The cluster.
        cluster: ClusterId,
        /// The actor's kind.
        kind: ActorKind,
        /// The actor.
        id: String,
    },
    /// Every event of one actor.
    EventsOf {
        /// The cluster.
        cluster: ClusterId,
        /// The actor's kind.
        kind: ActorKind,
        /// The actor.
        id: String,
    },
    /// Every event of one kind of actor.
    EventsOfKind {
        /// The cluster.
        cluster: ClusterId,
        /// The kind.
        kind: ActorKind,
    },
    /// One event of every actor of a kind.
    EventOfKind {
        /// The cluster.
        cluster: ClusterId,
        /// The kind.
        kind: ActorKind,
        /// The event.
        event: String,
    },
    /// Every event of the cluster.
    AllEvents {
        /// The cluster.
        cluster: ClusterId,
    },
    /// Every Raft message to one member of a group.
    RaftMember {
        /// The cluster.
        cluster: ClusterId,
        /// The group.
        group: GroupId,
        /// The member.
        replica: ReplicaId,
    },
}

const ROOT: &str = "cb.v1";

impl Subject {
    /// A command or query to an actor.
    #[must_use]
    pub fn actor(cluster: &ClusterId, kind: ActorKind, id: impl ToString, verb: &str) -> Self {
        let id = id.to_string();
        debug_assert!(is_token(&id) && is_token(verb), "subject tokens: {id} {verb}");
        Self::Actor { cluster: cluster.clone(), kind, id, verb: verb.to_owned() }
    }

    /// An event of an actor.
    #[must_use]
    pub fn event(cluster: &ClusterId, kind: ActorKind, id: impl ToString, event: &str) -> Self {
        let id = id.to_string();
        debug_assert!(is_token(&id) && is_token(event), "subject tokens: {id} {event}");
        Self::Event { cluster: cluster.clone(), kind, id, event: event.to_owned() }
    }

    /// A Raft message.
    #[must_use]
    pub fn raft(cluster: &ClusterId, group: &GroupId, replica: ReplicaId, rpc: &str) -> Self {
        debug_assert!(is_token(rpc), "subject token: {rpc}");
        Self::Raft { cluster: cluster.clone(), group: group.clone(), replica, rpc: rpc.to_owned() }
    }

    /// The last token: verb, event or procedure.
    #[must_use]
    pub fn last(&self) -> &str {
        match self {
            Self::Actor { verb, .. } => verb,
            Self::Event { event, .. } => event,
            Self::Raft { rpc, .. } => rpc,
        }
    }
}

impl fmt::Display for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Actor { cluster, kind, id, verb } => {
                write!(f, "{ROOT}.{cluster}.{kind}.{id}.{verb}")
            }
            Self::Event { cluster, kind, id, event } => {
                write!(f, "{ROOT}.{cluster}.evt.{kind}.{id}.{event}")
            }
            Self::Raft { cluster, group, replica, rpc } => {
                write!(f, "{ROOT}.{cluster}.raft.{group}.{replica}.{rpc}")
            }
        }
    }
}

impl FromStr for Subject {
    type Err = SubjectError;

    fn from_str(text: &str) -> Result<Self, SubjectError> {
        let fail = |why| SubjectError { text: text.to_owned(), why };
        let tokens: Vec<&str> = text.split('.').collect();
        if !tokens.iter().all(|token| is_token(token)) {
            return Err(fail("every part between dots must be letters, digits, '-' or '_'"));
        }
        let kind = |token| ActorKind::parse(token).ok_or_else(|| fail("unknown kind of actor"));
        let cluster = |token: &str| ClusterId::new(token).map_err(|_| fail("bad cluster id"));
        match tokens.as_slice() {
            ["cb", "v1", c, "raft", group, replica, rpc] => Ok(Self::Raft {
                cluster: cluster(c)?,
                group: GroupId::new(*group).map_err(|_| fail("bad group id"))?,
                replica: ReplicaId(replica.parse().map_err(|_| fail("bad replica number"))?),
                rpc: (*rpc).to_owned(),
            }),
            ["cb", "v1", c, "evt", k, id, event] => Ok(Self::Event {
                cluster: cluster(c)?,
                kind: kind(k)?,
                id: (*id).to_owned(),
                event: (*event).to_owned(),
            }),
            ["cb", "v1", c, k, id, verb] => Ok(Self::Actor {
                cluster: cluster(c)?,
                kind: kind(k)?,
                id: (*id).to_owned(),
                verb: (*verb).to_owned(),
            }),
            _ => Err(fail("expected cb.v1.<cluster>.<kind>.<id>.<verb>")),
        }
    }
}

impl SubjectPattern {
    /// Whether `subject` belongs to the set.
    #[must_use]
    pub fn matches(&self, subject: &Subject) -> bool {
        match (self, subject) {
            (Self::Exact(exact), subject) => exact == subject,
            (
                Self::Verbs { cluster, kind, id },
                Subject::Actor { cluster: c, kind: k, id: i, .. },
            )
            | (
                Self::EventsOf { cluster, kind, id },
                Subject::Event { cluster: c, kind: k, id: i, .. },
            ) => cluster == c && kind == k && id == i,
            (Self::EventsOfKind { cluster, kind }, Subject::Event { cluster: c, kind: k, .. }) => {
                cluster == c && kind == k
            }
            (
                Self::EventOfKind { cluster, kind, event },
                Subject::Event { cluster: c, kind: k, event: e, .. },
            ) => cluster == c && kind == k && event == e,
            (Self::AllEvents { cluster }, Subject::Event { cluster: c, .. }) => cluster == c,
            (
                Self::RaftMember { cluster, group, replica },
                Subject::Raft { cluster: c, group: g, replica: r, .. },
            ) => cluster == c && group == g && replica == r,
            _ => false,
        }
    }
}

impl fmt::Display for SubjectPattern {
    /// The pattern in NATS's wildcard syntax.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Exact(subject) => subject.fmt(f),
            Self::Verbs { cluster, kind, id } => write!(f, "{ROOT}.{cluster}.{kind}.{id}.*"),
            Self::EventsOf { cluster, kind, id } => write!(f, "{ROOT}.{cluster}.evt.{kind}.{id}.*"),
            Self::EventsOfKind { cluster, kind } => write!(f, "{ROOT}.{cluster}.evt.{kind}.*.*"),
            Self::EventOfKind { cluster, kind, event } => {
                write!(f, "{ROOT}.{cluster}.evt.{kind}.*.{event}")
            }
            Self::AllEvents { cluster } => write!(f, "{ROOT}.{cluster}.evt.>"),
            Self::RaftMember { cluster, group, replica } => {
                write!(f, "{ROOT}.{cluster}.raft.{group}.{replica}.*")
            }
        }
    }
}
