//! Identifiers and counters that cross the wire, each its own type.

use std::{fmt, str::FromStr};

use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// Why a text is not a valid identifier.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The text is empty, too long or holds a character that a subject token may not have.
    #[error(
        "'{text}' is not a valid {what}: use 1 to {TOKEN_LENGTH_MAX} letters, digits, '-' or '_'"
    )]
    BadToken {
        /// What the text was meant to be.
        what: &'static str,
        /// The offending text.
        text: String,
    },
    /// The text is not a UUID.
    #[error("'{text}' is not a {what}: expected a UUID such as 0197-…")]
    BadUuid {
        /// What the text was meant to be.
        what: &'static str,
        /// The offending text.
        text: String,
    },
}

/// Longest token of a subject in bytes; keeps a whole subject far below NATS's control line limit.
pub const TOKEN_LENGTH_MAX: usize = 64;

/// Whether `text` may stand as one token of a subject.
#[must_use]
pub fn is_token(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= TOKEN_LENGTH_MAX
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
}

macro_rules! token_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks and wraps `text`.
            ///
            /// # Errors
            /// [`IdError::BadToken`] if it could not stand in a subject.
            pub fn new(text: impl Into<String>) -> Result<Self, IdError> {
                let text = text.into();
                if is_token(&text) { Ok(Self(text)) } else { Err(IdError::BadToken { what: $what, text }) }
            }

            /// The text itself.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(text: String) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> Self {
                id.0
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Self::new(text)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
    };
}

macro_rules! uuid_id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub Uuid);

        impl $name {
            /// A fresh, time-ordered identifier.
            #[must_use]
            pub fn generate() -> Self {
                Self(Uuid::now_v7())
            }

            /// The identifier with this number: for simulations, where equal runs name things
            /// equally.
            #[must_use]
            pub fn from_number(number: u128) -> Self {
                Self(Uuid::from_u128(number))
            }
        }

        impl FromStr for $name {
            type Err = IdError;
            fn from_str(text: &str) -> Result<Self, IdError> {
                Uuid::parse_str(text)
                    .map(Self)
                    .map_err(|_| IdError::BadUuid { what: $what, text: text.to_owned() })
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.hyphenated().fmt(f)
            }
        }
    };
}

macro_rules! counter {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(
            Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize,
        )]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl $name {
            /// The value after this one.
            #[must_use]
            pub fn next(self) -> Self {
                Self(self.0 + 1)
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

token_id!(
    /// One Callboard cluster; the third token of every subject.
    ClusterId, "cluster id"
);
token_id!(
    /// One node: an operating-system process with its own data directory.
    NodeId, "node id"
);
token_id!(
    /// Who a message or kernel belongs to.
    OwnerId, "owner id"
);
token_id!(
    /// One Raft group: `system`, or a kernel's id.
    GroupId, "Raft group id"
);
uuid_id!(
    /// One notebook kernel, however many replicas it has.
    KernelId, "kernel id"
);
uuid_id!(
    /// One message; a redelivery carries the same id.
    MessageId, "message id"
);
uuid_id!(
    /// One data directory. A node that lost its disk comes back with another.
    DiskId, "disk id"
);
counter!(
    /// A member of a Raft group. Never reused within the group.
    ReplicaId
);
counter!(
    /// How often a node's process was started on its data directory.
    Incarnation
);
counter!(
    /// Fencing number of the control plane: the term of the system Raft group.
    Epoch
);
counter!(
    /// An executor term of one kernel.
    Term
);
counter!(
    /// Place of an accepted request in its kernel's order; the first is 1.
    Seq
);

impl GroupId {
    /// The group that holds the cluster's desired state.
    #[must_use]
    pub fn system() -> Self {
        Self("system".to_owned())
    }
}

/// What stands between a kernel's id and the generation in the name of its group. No id holds it.
const GENERATION_MARK: &str = "-g";

impl GroupId {
    /// The group of a kernel: it is named after the kernel, and after a recovery from a lost
    /// majority also after how often that happened.
    #[must_use]
    pub fn of_kernel(kernel: KernelId, generation: u64) -> Self {
        match generation {
            0 => Self(kernel.to_string()),
            _ => Self(format!("{kernel}{GENERATION_MARK}{generation}")),
        }
    }

    /// The kernel and the generation whose group this is, if it is one.
    #[must_use]
    pub fn kernel(&self) -> Option<(KernelId, u64)> {
        match self.0.split_once(GENERATION_MARK) {
            None => Some((self.0.parse().ok()?, 0)),
            Some((kernel, generation)) => {
                let generation = generation.parse().ok().filter(|generation| *generation > 0);
                Some((kernel.parse().ok()?, generation?))
            }
        }
    }
}

impl Default for OwnerId {
    /// The owner of whatever names none.
    fn default() -> Self {
        Self("default".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_name_of_a_kernels_group_tells_kernel_and_generation() {
        let kernel = KernelId::generate();
        assert_eq!(GroupId::of_kernel(kernel, 0).as_str(), kernel.to_string());
        for generation in [0, 1, 12] {
            let group = GroupId::of_kernel(kernel, generation);
            assert!(is_token(group.as_str()));
            assert_eq!(group.kernel(), Some((kernel, generation)));
        }
        assert_eq!(GroupId::system().kernel(), None);
        let odd = ["-g0", "-g", "-gx", "-1"].map(|tail| format!("{kernel}{tail}"));
        assert!(odd.into_iter().all(|text| GroupId(text).kernel().is_none()));
    }
}
