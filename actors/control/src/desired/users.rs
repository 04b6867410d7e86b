//! The commands about users and their access tokens.

use std::collections::BTreeMap;

use callboard_protocol::{
    OwnerId,
    users::{TokenEntry, TokenId, UserEntry, UserRole},
};
use serde::{Deserialize, Serialize};

use super::{DesiredState, Outcome, Refusal};

#[cfg(test)]
mod tests;

/// Users of a cluster. Every node holds all of them, at up to 8 KiB each with all their tokens.
pub const USERS_MAX: usize = 1_000;
/// Access tokens a user may have at a time: one per program and machine is far fewer.
pub const TOKENS_PER_USER_MAX: usize = 32;

/// The users, and how often they changed.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Users {
    version: u64,
    entries: BTreeMap<OwnerId, UserEntry>,
}

impl Users {
    /// Whether there never was one.
    pub(super) fn is_untouched(&self) -> bool {
        *self == Self::default()
    }
}

/// What changed about a user.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum UserChange {
    /// It is there.
    Added,
    /// It may do something else.
    RoleChanged,
    /// It is gone, and its tokens with it.
    Removed,
    /// It has one more token.
    TokenAdded(TokenId),
    /// It has one token less.
    TokenRevoked(TokenId),
}

impl DesiredState {
    /// The users.
    #[must_use]
    pub fn users(&self) -> &BTreeMap<OwnerId, UserEntry> {
        &self.users.entries
    }

    /// Changes with every change of a user or token.
    #[must_use]
    pub fn users_version(&self) -> u64 {
        self.users.version
    }

    pub(super) fn add_user(&mut self, user: OwnerId, role: UserRole) -> Outcome {
        let count = self.users.entries.len();
        match self.users.entries.get_mut(&user) {
            Some(entry) if entry.role == role => {
                Outcome::User { entry: entry.clone(), change: None }
            }
            Some(entry) => {
                entry.role = role;
                let entry = entry.clone();
                self.changed_user(entry, UserChange::RoleChanged)
            }
            None if count >= USERS_MAX => Outcome::Refused(Refusal::TooManyUsers),
            None => {
                let entry = UserEntry { user: user.clone(), role, tokens: BTreeMap::new() };
                self.users.entries.insert(user, entry.clone());
                self.changed_user(entry, UserChange::Added)
            }
        }
    }

    pub(super) fn remove_user(&mut self, user: OwnerId) -> Outcome {
        let count = self.kernels.values().filter(|spec| spec.owner == user).count();
        if count > 0 && self.users.entries.contains_key(&user) {
            return Outcome::Refused(Refusal::OwnsKernels { user, count });
        }
        match self.users.entries.remove(&user) {
            Some(entry) => self.changed_user(entry, UserChange::Removed),
            None => Outcome::Refused(Refusal::NoSuchUser { user }),
        }
    }

    pub(super) fn add_token(&mut self, user: OwnerId, id: TokenId, token: TokenEntry) -> Outcome {
        if let Some(holder) = self.holder(&id) {
            let is_same = holder.user == user && holder.tokens.get(&id) == Some(&token);
            let entry = holder.clone();
            return if is_same {
                Outcome::User { entry, change: None }
            } else {
                Outcome::Refused(Refusal::TokenTaken { id })
            };
        }
        let Some(entry) = self.users.entries.get_mut(&user) else {
            return Outcome::Refused(Refusal::NoSuchUser { user });
        };
        if entry.tokens.len() >= TOKENS_PER_USER_MAX {
            return Outcome::Refused(Refusal::TooManyTokens { user });
        }
        entry.tokens.insert(id.clone(), token);
        let entry = entry.clone();
        self.changed_user(entry, UserChange::TokenAdded(id))
    }

    pub(super) fn revoke_token(&mut self, id: TokenId) -> Outcome {
        let mut entries = self.users.entries.values_mut();
        let Some(entry) = entries.find(|entry| entry.tokens.contains_key(&id)) else {
            return Outcome::Refused(Refusal::NoSuchToken { id });
        };
        entry.tokens.remove(&id);
        let entry = entry.clone();
        self.changed_user(entry, UserChange::TokenRevoked(id))
    }

    fn holder(&self, id: &TokenId) -> Option<&UserEntry> {
        self.users.entries.values().find(|entry| entry.tokens.contains_key(id))
    }

    fn changed_user(&mut self, entry: UserEntry, change: UserChange) -> Outcome {
        self.users.version += 1;
        Outcome::User { entry, change: Some(change) }
    }
}
