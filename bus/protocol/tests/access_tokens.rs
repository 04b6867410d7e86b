//! Access tokens: what is written is read back, nothing else is read, and only the right one is
//! admitted.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

use callboard_protocol::users::{AccessToken, SECRET_BYTES, TokenEntry, TokenError, TokenId};
use proptest::prelude::*;

const TEXT: &str = "cb_k3x9q0a7b2mz_AAECAwQFBgcICQoLDA0ODxAREhMUFRYXGBkaGxwdHh8";

fn token_id() -> impl Strategy<Value = TokenId> {
    "[a-z0-9]{12}".prop_map(|text| TokenId::new(text).unwrap())
}

fn access_token() -> impl Strategy<Value = AccessToken> {
    (token_id(), any::<[u8; SECRET_BYTES]>()).prop_map(|(id, bytes)| AccessToken::new(id, &bytes))
}

fn entry(token: &AccessToken, expires_ms: Option<u64>) -> TokenEntry {
    TokenEntry { sha256: token.sha256_hex(), label: None, created_ms: 0, expires_ms }
}

proptest! {
    #[test]
    fn a_written_token_is_read_back(token in access_token()) {
        let text = token.to_string();
        prop_assert_eq!(token.secret.len(), 43);
        prop_assert_eq!(text.len(), "cb_".len() + 12 + "_".len() + 43);
        let read: AccessToken = text.parse().unwrap();
        prop_assert_eq!((&read.id, read.to_string()), (&token.id, text));
        let shown = format!("{token:?}");
        prop_assert!(!shown.contains(&token.secret));
    }

    /// Whatever parses is written as it was: no two texts are the same token.
    #[test]
    fn what_is_read_is_written_the_same(text in "(cb_)?[a-z0-9]{11,13}_[A-Za-z0-9_-]{42,44}") {
        if let Ok(token) = text.parse::<AccessToken>() {
            prop_assert_eq!(token.to_string(), text);
        }
    }

    #[test]
    fn any_text_is_read_or_refused_without_being_repeated(text in ".{0,80}") {
        if let Err(error) = text.parse::<AccessToken>() {
            prop_assert_eq!(error, TokenError::NotAToken);
        }
    }

    /// One character more, less or other is another token, or none.
    #[test]
    fn a_damaged_token_is_not_admitted(token in access_token(), at in 0_usize..59, by in "[!-~]") {
        let text = token.to_string();
        let entry = entry(&token, None);
        let changed = format!("{}{by}{}", &text[..at], &text[at + 1..]);
        let shorter = format!("{}{}", &text[..at], &text[at + 1..]);
        let longer = format!("{}{by}{}", &text[..at], &text[at..]);
        for other in [changed, shorter, longer] {
            let is_admitted = other.parse().is_ok_and(|other| entry.admits(&other, 0));
            prop_assert_eq!(is_admitted, other == text, "{}", other);
        }
    }

    #[test]
    fn a_token_is_admitted_until_it_expires(
        token in access_token(),
        other in access_token(),
        expires_ms in prop::option::of(any::<u64>()),
        now_ms: u64,
    ) {
        let entry = entry(&token, expires_ms);
        prop_assert_eq!(entry.admits(&token, now_ms), expires_ms.is_none_or(|at| now_ms < at));
        prop_assert!(!entry.admits(&other, now_ms));
    }
}

#[test]
fn a_token_expires_at_its_very_millisecond() {
    let token: AccessToken = TEXT.parse().unwrap();
    let entry = entry(&token, Some(1_000));
    assert!(entry.admits(&token, 999));
    assert!(!entry.admits(&token, 1_000));
    assert!(!entry.admits(&token, u64::MAX));
}

#[test]
fn an_entry_without_a_whole_digest_admits_nobody() {
    let token: AccessToken = TEXT.parse().unwrap();
    let whole = token.sha256_hex();
    for sha256 in [String::new(), whole[..63].to_owned(), format!("{whole}0"), whole.to_uppercase()]
    {
        let entry = TokenEntry { sha256, ..entry(&token, None) };
        assert!(!entry.admits(&token, 0), "{entry:?}");
    }
}

#[test]
fn what_is_no_token_is_refused_with_a_next_step_and_without_the_text() {
    let secret = &TEXT[16..];
    for text in [
        "",
        "cb_",
        "cb__",
        secret,
        &TEXT[3..],
        &TEXT.replace("cb_", "CB_"),
        &TEXT.replace("k3x9", "K3X9"),
        &TEXT.replace("k3x9", "k3x"),
        &TEXT.replace("AAEC", "AA+C"),
        &TEXT.replace("AAEC", "AA=="),
        &format!("{TEXT}="),
        &format!(" {TEXT}"),
        // The last character has two bits that no byte uses.
        &TEXT.replace("Hh8", "Hh9"),
    ] {
        let error = text.parse::<AccessToken>().unwrap_err();
        assert_eq!(error, TokenError::NotAToken, "{text}");
        assert!(error.to_string().contains("callboard user token"), "{error}");
        assert!(!error.to_string().contains(secret), "{error}");
    }
    for text in ["", "k3x9q0a7b2m", "k3x9q0a7b2mzz", "K3X9Q0A7B2MZ", "k3x9q0a7b2m_", TEXT] {
        let error = text.parse::<TokenId>().unwrap_err();
        assert!(error.to_string().contains("callboard user list"), "{error}");
    }
    assert!(serde_json::from_str::<TokenId>("\"short\"").is_err());
}
