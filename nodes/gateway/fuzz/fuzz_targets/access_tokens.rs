//! Access tokens: what is one is written as it was read, and nothing shows its secret.
#![no_main]

use callboard_protocol::users::{AccessToken, TokenId};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let _ = TokenId::new(text);
    let Ok(token) = text.parse::<AccessToken>() else { return };
    assert_eq!(token.to_string(), text);
    assert!(!format!("{token:?}").contains(&token.secret));
});
