//! Who uses the cluster: users, their roles and their access tokens, and the verbs about them on
//! `control.main`.
//!
//! A token is a secret that its holder alone keeps: what travels and is stored is its digest.

use std::{collections::BTreeMap, fmt, str::FromStr};

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::ids::OwnerId;

/// Characters of a token's id: 36^12 are enough that a thousand users' ids never meet by chance.
pub const TOKEN_ID_LENGTH: usize = 12;
/// Random bytes of a token's secret: as many as its digest has.
pub const SECRET_BYTES: usize = 32;
/// What an access token begins with, so that a scanner for leaked secrets can find it.
const TOKEN_PREFIX: &str = "cb_";

/// What a user may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum UserRole {
    /// Looks at the kernels of its owner and their outputs; starts, runs and stops nothing.
    Viewer,
    /// Has kernels of its own.
    User,
    /// Sees and manages all owners' kernels, and the users.
    Admin,
}

impl fmt::Display for UserRole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Viewer => "viewer",
            Self::User => "user",
            Self::Admin => "admin",
        })
    }
}

/// Why a text is no token. It never holds the text, which may be a secret.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    /// It is no token's id.
    #[error(
        "a token's id is {TOKEN_ID_LENGTH} lower-case letters and digits, the part after 'cb_' in \
         the token: see `callboard user list`"
    )]
    BadId,
    /// It is no access token.
    #[error(
        "this is not an access token, which looks like cb_<id>_<secret>: copy it whole, or make \
         another one with `callboard user token`"
    )]
    NotAToken,
}

/// What a token is called; no secret.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct TokenId(String);

impl TokenId {
    /// Characters that an id is made of.
    pub const ALPHABET: &[u8; 36] = b"abcdefghijklmnopqrstuvwxyz0123456789";

    /// Checks and wraps `text`.
    ///
    /// # Errors
    /// [`TokenError::BadId`].
    pub fn new(text: impl Into<String>) -> Result<Self, TokenError> {
        let text = text.into();
        let is_id =
            text.len() == TOKEN_ID_LENGTH && text.bytes().all(|b| Self::ALPHABET.contains(&b));
        if is_id { Ok(Self(text)) } else { Err(TokenError::BadId) }
    }

    /// The text itself.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for TokenId {
    type Error = TokenError;
    fn try_from(text: String) -> Result<Self, TokenError> {
        Self::new(text)
    }
}

impl From<TokenId> for String {
    fn from(id: TokenId) -> Self {
        id.0
    }
}

impl FromStr for TokenId {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        Self::new(text)
    }
}

impl fmt::Display for TokenId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// An access token, as its holder has it. Written `cb_<id>_<secret>`.
#[derive(Clone)]
pub struct AccessToken {
    /// What it is called.
    pub id: TokenId,
    /// [`SECRET_BYTES`] random bytes in URL-safe base64 without padding.
    pub secret: String,
}

impl AccessToken {
    /// The token of this id whose secret is these bytes, which have to be random.
    #[must_use]
    pub fn new(id: TokenId, secret: &[u8; SECRET_BYTES]) -> Self {
        Self { id, secret: URL_SAFE_NO_PAD.encode(secret) }
    }

    /// SHA-256 of the whole text, in hexadecimal. A secret of 256 random bits needs no slower
    /// digest: there is nothing to guess.
    #[must_use]
    pub fn sha256_hex(&self) -> String {
        format!("{:x}", Sha256::digest(self.to_string()))
    }
}

impl FromStr for AccessToken {
    type Err = TokenError;
    fn from_str(text: &str) -> Result<Self, TokenError> {
        let parts = text.strip_prefix(TOKEN_PREFIX).and_then(|rest| rest.split_once('_'));
        let (id, secret) = parts.ok_or(TokenError::NotAToken)?;
        let id = TokenId::new(id).map_err(|_| TokenError::NotAToken)?;
        match URL_SAFE_NO_PAD.decode(secret) {
            Ok(bytes) if bytes.len() == SECRET_BYTES => Ok(Self { id, secret: secret.to_owned() }),
            _ => Err(TokenError::NotAToken),
        }
    }
}

impl fmt::Display for AccessToken {
    /// The whole token, secret included.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{TOKEN_PREFIX}{}_{}", self.id, self.secret)
    }
}

impl fmt::Debug for AccessToken {
    /// Everything but the secret.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AccessToken").field("id", &self.id).finish_non_exhaustive()
    }
}

/// What the cluster knows of an access token. Stored in logs: add defaulted fields at the end only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TokenEntry {
    /// [`AccessToken::sha256_hex`] of it.
    pub sha256: String,
    /// What it is for, in its maker's words.
    #[serde(default)]
    pub label: Option<String>,
    /// When it was made, in milliseconds since 1970.
    pub created_ms: u64,
    /// From when on it is refused, in milliseconds since 1970; never, if there is none.
    #[serde(default)]
    pub expires_ms: Option<u64>,
}

impl TokenEntry {
    /// Whether `token` is the one of this entry and has not expired by `now_ms`. How long this
    /// takes does not tell how much of the token is right.
    #[must_use]
    pub fn admits(&self, token: &AccessToken, now_ms: u64) -> bool {
        let is_same = token.sha256_hex().as_bytes().ct_eq(self.sha256.as_bytes());
        let is_valid = self.expires_ms.is_none_or(|expires_ms| now_ms < expires_ms);
        bool::from(is_same & u8::from(is_valid).into())
    }
}

/// A user of the cluster. Stored in logs: add defaulted fields at the end only.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserEntry {
    /// Who; the owner of its kernels.
    pub user: OwnerId,
    /// What it may do.
    pub role: UserRole,
    /// Its access tokens.
    #[serde(default)]
    pub tokens: BTreeMap<TokenId, TokenEntry>,
}

/// What `list_users` takes; nothing asks for the first page.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListUsers {
    /// The last user of the page before, as [`UserList::next`] named it.
    #[serde(default)]
    pub after: Option<OwnerId>,
}

/// What `list_users` answers: as many users as fit into one message, in order of their names.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct UserList {
    /// The users.
    pub users: Vec<UserEntry>,
    /// Changes with every change of a user or token.
    pub version: u64,
    /// If there are more, what to ask for next.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<OwnerId>,
}

/// What `add_user` takes: there shall be such a user. Changes the role of one that exists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddUser {
    /// Who.
    pub user: OwnerId,
    /// What it may do.
    pub role: UserRole,
}

/// What `remove_user` takes. A user that owns kernels is not removed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RemoveUser {
    /// Who.
    pub user: OwnerId,
}

/// What `add_token` takes: a token that its maker keeps, and of which only this is told.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AddToken {
    /// Whose.
    pub user: OwnerId,
    /// What it is called.
    pub id: TokenId,
    /// What to know of it.
    pub entry: TokenEntry,
}

/// What `revoke_token` takes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RevokeToken {
    /// Which.
    pub id: TokenId,
}

/// The event `users_changed` of `control.main`: look again, the users are not as they were.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct UsersChanged {
    /// The present [`UserList::version`].
    pub version: u64,
}
