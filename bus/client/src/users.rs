//! The verbs about users and access tokens. A token's secret is made here and leaves only to whoever
//! asked for it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use callboard_protocol::{
    Fault, FaultCode, OwnerId,
    users::{
        AccessToken, AddToken, AddUser, ListUsers, RemoveUser, RevokeToken, SECRET_BYTES,
        TOKEN_ID_LENGTH, TokenEntry, TokenError, TokenId, UserEntry, UserList, UserRole,
    },
};
use rand::{CryptoRng, Rng};

use crate::control::ControlClient;

impl ControlClient {
    /// Every user.
    ///
    /// # Errors
    /// As [`Self::start_kernel`].
    pub async fn list_users(&self) -> Result<UserList, Fault> {
        let mut all = UserList::default();
        let mut after = None;
        loop {
            let page: UserList =
                self.verb("list_users", &ListUsers { after: after.clone() }).await?;
            // Of the first page: what changes between two pages is announced as a later version.
            if after.is_none() {
                all.version = page.version;
            }
            all.users.extend(page.users);
            // A page that does not lead on would be asked for again and again.
            match page.next.filter(|next| Some(next) > after.as_ref()) {
                Some(next) => after = Some(next),
                None => return Ok(all),
            }
        }
    }

    /// Adds a user, or changes the role of one that exists.
    ///
    /// # Errors
    /// As [`Self::start_kernel`].
    pub async fn add_user(&self, user: OwnerId, role: UserRole) -> Result<UserEntry, Fault> {
        self.verb("add_user", &AddUser { user, role }).await
    }

    /// Removes a user with its tokens, and answers its last entry.
    ///
    /// # Errors
    /// As [`Self::start_kernel`]; [`FaultCode::Conflict`] while the user owns kernels,
    /// [`FaultCode::NotFound`] if there is no such user, which after a lost answer may be this very
    /// request's doing.
    pub async fn remove_user(&self, user: OwnerId) -> Result<UserEntry, Fault> {
        self.verb("remove_user", &RemoveUser { user }).await
    }

    /// Makes an access token for a user, valid for `expires` or for ever. Nobody can be asked for it
    /// again.
    ///
    /// # Errors
    /// As [`Self::start_kernel`]; [`FaultCode::NotFound`] if there is no such user,
    /// [`FaultCode::Exhausted`] if it has too many tokens.
    pub async fn add_token(
        &self,
        user: OwnerId,
        label: Option<String>,
        expires: Option<Duration>,
    ) -> Result<AccessToken, Fault> {
        let token = random_token(&mut rand::rng())
            .map_err(|error| Fault::new(FaultCode::Internal, error.to_string()))?;
        let created_ms = millis(SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default());
        let expires_ms = expires.map(|expires| created_ms.saturating_add(millis(expires)));
        let entry = TokenEntry { sha256: token.sha256_hex(), label, created_ms, expires_ms };
        let request = AddToken { user, id: token.id.clone(), entry };
        self.verb::<_, UserEntry>("add_token", &request).await?;
        Ok(token)
    }

    /// Makes an access token invalid for ever, and answers its user's entry without it.
    ///
    /// # Errors
    /// As [`Self::start_kernel`]; [`FaultCode::NotFound`] if there is no such token, which after a
    /// lost answer may be this very request's doing.
    pub async fn revoke_token(&self, id: TokenId) -> Result<UserEntry, Fault> {
        self.verb("revoke_token", &RevokeToken { id }).await
    }
}

fn random_token(rng: &mut (impl Rng + CryptoRng)) -> Result<AccessToken, TokenError> {
    let letters = TokenId::ALPHABET;
    let id: String = (0..TOKEN_ID_LENGTH)
        .map(|_| char::from(letters[rng.random_range(0..letters.len())]))
        .collect();
    let secret: [u8; SECRET_BYTES] = rng.random();
    Ok(AccessToken::new(TokenId::new(id)?, &secret))
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn every_token_is_another_one_and_can_be_read() {
        let mut seen = BTreeSet::new();
        for _ in 0..1_000 {
            let token = random_token(&mut rand::rng()).unwrap();
            let read: AccessToken = token.to_string().parse().unwrap();
            assert_eq!(read.to_string(), token.to_string());
            assert!(seen.insert(token.id.to_string()) && seen.insert(token.secret));
        }
    }
}
