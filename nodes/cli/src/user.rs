//! `callboard user …`: who may use a gateway, and with which access tokens.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use callboard_client::ControlClient;
use callboard_protocol::{
    OwnerId,
    date::iso8601,
    users::{TokenEntry, TokenId, UserEntry, UserRole},
};
use serde_json::json;

use crate::{
    args::UserVerb,
    context::Context,
    exit::{Exit, Outcome},
    output::{say, table},
};

/// Characters of a date and a time to the minute in ISO 8601.
const MINUTE_LENGTH: usize = "2026-11-26T20:41".len();

/// Runs a verb.
///
/// # Errors
/// A [`crate::exit::Failure`] that says what to do.
pub async fn run(context: &Context, verb: UserVerb) -> Outcome {
    let control = context.connect().await?.control();
    match verb {
        UserVerb::Add { user, role } => add(context, &control, user, role.into()).await,
        UserVerb::Remove { user } => remove(context, &control, user).await,
        UserVerb::List => list(context, &control).await,
        UserVerb::Token { user, label, expires_in } => {
            token(context, &control, user, label, expires_in).await
        }
        UserVerb::Revoke { id } => revoke(context, &control, id).await,
    }
}

async fn add(context: &Context, control: &ControlClient, user: OwnerId, role: UserRole) -> Outcome {
    let entry = control.add_user(user, role).await?;
    if entry.tokens.is_empty() {
        say(&format!("next: callboard user token {}", entry.user));
    }
    context.printer.data(&entry, |entry| format!("{} ({})", entry.user, entry.role))?;
    Ok(Exit::Ok)
}

async fn remove(context: &Context, control: &ControlClient, user: OwnerId) -> Outcome {
    let entry = control.remove_user(user).await?;
    say(&format!("removed, and {} with it", tokens(entry.tokens.len())));
    context.printer.data(&entry, |entry| entry.user.to_string())?;
    Ok(Exit::Ok)
}

async fn list(context: &Context, control: &ControlClient) -> Outcome {
    let list = control.list_users().await?;
    let now_ms = now_ms();
    context.printer.data(&list, |list| {
        let headings = ["user", "role", "token", "label", "made", "expires"];
        table(&headings, list.users.iter().flat_map(|entry| rows(entry, now_ms)))
    })?;
    Ok(Exit::Ok)
}

/// A row for each token of a user, and one for a user that has none.
fn rows(entry: &UserEntry, now_ms: u64) -> Vec<Vec<String>> {
    let row = |token: [String; 4]| {
        [entry.user.to_string(), entry.role.to_string()].into_iter().chain(token).collect()
    };
    if entry.tokens.is_empty() {
        return vec![row(["-"; 4].map(str::to_owned))];
    }
    let token = |(id, token): (&TokenId, &TokenEntry)| {
        let label = token.label.clone().unwrap_or_else(|| "-".to_owned());
        row([id.to_string(), label, minute(token.created_ms), expiry(token.expires_ms, now_ms)])
    };
    entry.tokens.iter().map(token).collect()
}

fn expiry(expires_ms: Option<u64>, now_ms: u64) -> String {
    match expires_ms {
        None => "never".to_owned(),
        Some(at_ms) if at_ms <= now_ms => "expired".to_owned(),
        Some(at_ms) => minute(at_ms),
    }
}

fn minute(at_ms: u64) -> String {
    let text = iso8601(UNIX_EPOCH + Duration::from_millis(at_ms));
    text.get(..MINUTE_LENGTH).unwrap_or(&text).replace('T', " ")
}

async fn token(
    context: &Context,
    control: &ControlClient,
    user: OwnerId,
    label: Option<String>,
    expires_in: Option<Duration>,
) -> Outcome {
    let token = control.add_token(user.clone(), label, expires_in).await?;
    say(&format!(
        "this is the only time that the token is shown: keep it now. If it is lost or leaks: callboard \
         user revoke {}",
        token.id
    ));
    let text = token.to_string();
    let data = json!({ "user": user, "id": token.id, "token": text });
    context.printer.data(&data, |_| text)?;
    Ok(Exit::Ok)
}

async fn revoke(context: &Context, control: &ControlClient, id: TokenId) -> Outcome {
    let entry = control.revoke_token(id.clone()).await?;
    say(&format!("revoked; {} has {} left", entry.user, tokens(entry.tokens.len())));
    let data = json!({ "user": entry.user, "id": id, "revoked": true });
    context.printer.data(&data, |_| id.to_string())?;
    Ok(Exit::Ok)
}

fn tokens(count: usize) -> String {
    if count == 1 { "1 token".to_owned() } else { format!("{count} tokens") }
}

fn now_ms() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_token_has_a_row_and_an_expired_one_says_so() {
        let user = OwnerId::default();
        let mut entry = UserEntry { user, role: UserRole::Viewer, tokens: Default::default() };
        assert_eq!(rows(&entry, 0), [["default", "viewer", "-", "-", "-", "-"]]);
        let (made, later) = (1_709_164_799_000, 1_709_164_800_000);
        for (id, expires_ms) in [("000000000001", None), ("000000000002", Some(later))] {
            let (sha256, label) = (String::new(), Some("laptop".to_owned()));
            let token = TokenEntry { sha256, label, created_ms: made, expires_ms };
            entry.tokens.insert(TokenId::new(id).unwrap(), token);
        }
        let last = |now_ms| rows(&entry, now_ms).into_iter().map(|row| row[5].clone());
        assert!(last(made).eq(["never", "2024-02-29 00:00"]));
        assert!(last(later).eq(["never", "expired"]));
        assert_eq!(
            rows(&entry, made)[0][..5],
            ["default", "viewer", "000000000001", "laptop", "2024-02-28 23:59"]
        );
    }
}
