//! What the broker lets this user subscribe to, as the broker itself tells.

use std::time::Duration;

use async_nats::Client;
use bytes::Bytes;
use serde::Deserialize;
use tokio::time::timeout;

use crate::permissions::USER_INFO;

/// How long the broker may take; one that does not answer this question is taken to permit.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);

#[derive(Deserialize)]
struct UserInfo {
    data: UserData,
}

#[derive(Deserialize)]
struct UserData {
    #[serde(default)]
    permissions: Option<Permissions>,
}

#[derive(Deserialize)]
struct Permissions {
    #[serde(default)]
    subscribe: Option<Subjects>,
}

#[derive(Default, Deserialize)]
struct Subjects {
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    deny: Vec<String>,
}

/// Whether the broker grants the whole of `pattern`. A broker that does not say counts as granting.
pub(super) async fn may_subscribe(client: &Client, pattern: &str) -> bool {
    let Ok(Ok(reply)) = timeout(ANSWER_TIMEOUT, client.request(USER_INFO, Bytes::new())).await
    else {
        return true;
    };
    serde_json::from_slice::<UserInfo>(&reply.payload)
        .inspect_err(|error| tracing::debug!(%error, "the broker's permissions are unreadable"))
        .ok()
        .and_then(|info| info.data.permissions?.subscribe)
        .is_none_or(|subjects| granted(&subjects, pattern))
}

fn granted(subjects: &Subjects, pattern: &str) -> bool {
    let within = |grants: &[String]| grants.iter().any(|grant| covers(grant, pattern));
    (subjects.allow.is_empty() || within(&subjects.allow)) && !within(&subjects.deny)
}

/// Whether every subject of `inner` is one of `outer`, both in NATS's wildcard syntax.
fn covers(outer: &str, inner: &str) -> bool {
    let mut inner = inner.split('.');
    for token in outer.split('.') {
        match (token, inner.next()) {
            (">", Some(_)) => return true,
            (_, None) => return false,
            ("*", Some(other)) if other != ">" => {}
            (token, Some(other)) if token == other => {}
            _ => return false,
        }
    }
    inner.next().is_none()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_grant_covers_what_lies_within_it() {
        for (outer, inner) in
            [("a.>", "a.b.>"), ("a.*.c", "a.*.c"), ("a.*", "a.b"), ("a.b", "a.b"), (">", "a")]
        {
            assert!(covers(outer, inner), "{outer} covers {inner}");
        }
        for (outer, inner) in [
            ("a.b.>", "a.>"),
            ("a.*", "a.>"),
            ("a.b", "a.*"),
            ("a.>", "a"),
            ("a", "a.b"),
            ("a.*", "a"),
        ] {
            assert!(!covers(outer, inner), "{outer} does not cover {inner}");
        }
    }
}
