//! Who asks: access tokens against the users of the cluster.
//!
//! A token comes in the `Authorization` header (`token …` or `Bearer …`), as `?token=…`, as a
//! websocket subprotocol, or as the path prefix `/t/…` for clients that send no header with a
//! websocket. An empty one counts as none: `jupyter_server` sends it so.

use std::{
    collections::HashMap,
    future::{Ready, ready},
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use actix_web::{
    FromRequest, HttpRequest,
    dev::Payload,
    http::{StatusCode, header},
    web,
};
use callboard_protocol::{
    OwnerId,
    users::{AccessToken, TokenEntry, TokenId, UserList, UserRole},
};
use tokio::sync::watch;

use crate::{errors::ApiError, state::GatewayState};

/// What a subprotocol begins with that names a token.
pub(crate) const TOKEN_PROTOCOL: &str = "v1.token.websocket.jupyter.org.";

/// Who asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Caller {
    /// The user; the owner of its kernels.
    pub(crate) user: OwnerId,
    /// What it may do.
    pub(crate) role: UserRole,
}

impl Caller {
    /// Whether it may look at what `owner` has.
    pub(crate) fn sees(&self, owner: &OwnerId) -> bool {
        self.role == UserRole::Admin || self.user == *owner
    }

    /// Refuses users that may only look.
    pub(crate) fn may_change(&self) -> Result<(), ApiError> {
        if self.role == UserRole::Viewer {
            let text = format!("the user '{}' may only look: ask for the role 'user'", self.user);
            return Err(ApiError::new(StatusCode::FORBIDDEN, text));
        }
        Ok(())
    }
}

pub(crate) type Known = HashMap<TokenId, (Caller, TokenEntry)>;

/// The users and their tokens, as last heard of.
#[derive(Debug)]
pub(crate) struct Users {
    /// None before they were read for the first time.
    known: watch::Sender<Option<Arc<Known>>>,
    /// Whoever presents no token, if that is allowed.
    anonymous: Option<Caller>,
}

impl Users {
    pub(crate) fn new(anonymous: Option<OwnerId>) -> Self {
        let anonymous = anonymous.map(|user| Caller { user, role: UserRole::User });
        Self { known: watch::Sender::default(), anonymous }
    }

    pub(crate) fn replace(&self, list: UserList) {
        let tokens = list.users.into_iter().flat_map(|user| {
            let caller = Caller { user: user.user, role: user.role };
            user.tokens.into_iter().map(move |(id, entry)| (id, (caller.clone(), entry)))
        });
        let now: Known = tokens.collect();
        self.known.send_if_modified(|known| {
            let is_other = known.as_deref() != Some(&now);
            *known = Some(Arc::new(now));
            is_other
        });
    }

    /// Tells when they change.
    pub(crate) fn changes(&self) -> watch::Receiver<Option<Arc<Known>>> {
        self.known.subscribe()
    }

    /// Whose token `presented` is.
    pub(crate) fn identify(&self, presented: Option<&str>) -> Result<Caller, ApiError> {
        let refuse = |text: &str| Err(ApiError::new(StatusCode::UNAUTHORIZED, text));
        let Some(presented) = presented else {
            return match &self.anonymous {
                Some(caller) => Ok(caller.clone()),
                None => refuse(
                    "no access token: send 'Authorization: token …' (an operator makes one with \
                     `callboard user token NAME`)",
                ),
            };
        };
        let Some(known) = self.known.borrow().clone() else {
            let text = "the users cannot be read yet: try again in a second";
            return Err(ApiError::new(StatusCode::SERVICE_UNAVAILABLE, text));
        };
        let now_ms = now_ms();
        let admitted = presented.parse::<AccessToken>().ok().and_then(|token| {
            let (caller, entry) = known.get(&token.id)?;
            entry.admits(&token, now_ms).then(|| caller.clone())
        });
        match admitted {
            Some(caller) => Ok(caller),
            None => refuse(
                "the access token is wrong, expired or revoked: an operator makes another with \
                 `callboard user token NAME`",
            ),
        }
    }

    /// How long `presented` is valid yet; `None` if that has no end, or it is not valid at all.
    pub(crate) fn valid_for(&self, presented: Option<&str>) -> Option<Duration> {
        let token = presented?.parse::<AccessToken>().ok()?;
        let known = self.known.borrow().clone()?;
        let (_, entry) = known.get(&token.id)?;
        Some(Duration::from_millis(entry.expires_ms?.saturating_sub(now_ms())))
    }
}

fn now_ms() -> u64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(now.as_millis()).unwrap_or(u64::MAX)
}

/// The token of a request, if it has one.
pub(crate) fn presented(request: &HttpRequest) -> Option<String> {
    let in_header = request
        .headers()
        .get(header::AUTHORIZATION)
        .and_then(|value| value.to_str().ok())
        .map(after_scheme);
    let in_query = || {
        let query = web::Query::<HashMap<String, String>>::from_query(request.query_string());
        query.ok().and_then(|query| query.get("token").cloned())
    };
    let in_path = || request.match_info().get("path_token").map(str::to_owned);
    let in_protocol = || {
        let values = request.headers().get_all(header::SEC_WEBSOCKET_PROTOCOL);
        let names = values.filter_map(|value| value.to_str().ok()).flat_map(|it| it.split(','));
        let mut tokens = names.filter_map(|name| name.trim().strip_prefix(TOKEN_PROTOCOL));
        tokens.next().map(str::to_owned)
    };
    let meant = |token: String| (!token.is_empty() && token != "None").then_some(token);
    in_header
        .map(str::to_owned)
        .and_then(meant)
        .or_else(|| in_query().and_then(meant))
        .or_else(|| in_path().and_then(meant))
        .or_else(|| in_protocol().and_then(meant))
}

/// What follows `token`, `Bearer` or another scheme.
fn after_scheme(value: &str) -> &str {
    let value = value.trim();
    match value.split_once(char::is_whitespace) {
        Some((_, token)) => token.trim(),
        // A scheme without a token.
        None if ["token", "bearer"].iter().any(|it| value.eq_ignore_ascii_case(it)) => "",
        None => value,
    }
}

impl FromRequest for Caller {
    type Error = ApiError;
    type Future = Ready<Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, _: &mut Payload) -> Self::Future {
        let caller = match request.app_data::<web::Data<GatewayState>>() {
            Some(state) => {
                let caller = state.users.identify(presented(request).as_deref());
                if caller.is_err() {
                    state.metrics.refused_logins.inc();
                }
                caller
            }
            None => Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "no gateway")),
        };
        ready(caller)
    }
}

#[cfg(test)]
mod tests {
    use actix_web::{ResponseError as _, test::TestRequest};

    use super::*;

    #[test]
    fn tokens_are_read_wherever_clients_put_them_and_empty_ones_are_none() {
        let header = |value: &str| {
            let request = TestRequest::get().insert_header((header::AUTHORIZATION, value));
            presented(&request.to_http_request())
        };
        assert_eq!(header("token cb_a_b"), Some("cb_a_b".to_owned()));
        assert_eq!(header("Bearer  cb_a_b "), Some("cb_a_b".to_owned()));
        for empty in ["", "token", "token ", "token None", "Bearer "] {
            assert_eq!(header(empty), None, "{empty:?}");
        }
        let request = TestRequest::get().uri("/api?token=cb_a_b").to_http_request();
        assert_eq!(presented(&request), Some("cb_a_b".to_owned()));
        let protocols = format!("v1.kernel.websocket.jupyter.org, {TOKEN_PROTOCOL}cb_a_b");
        let request = TestRequest::get()
            .insert_header((header::SEC_WEBSOCKET_PROTOCOL, protocols))
            .to_http_request();
        assert_eq!(presented(&request), Some("cb_a_b".to_owned()));
    }

    #[test]
    fn without_a_token_only_who_is_allowed_gets_in() {
        assert!(Users::new(None).identify(None).is_err());
        let anyone = Users::new(Some(OwnerId::default()));
        assert_eq!(anyone.identify(None).unwrap().role, UserRole::User);
        // A gateway that has just started turns nobody away for good.
        let status = |users: &Users| users.identify(Some("cb_wrong")).unwrap_err().status_code();
        assert_eq!(status(&anyone), StatusCode::SERVICE_UNAVAILABLE);
        anyone.replace(UserList::default());
        assert_eq!(status(&anyone), StatusCode::UNAUTHORIZED);
    }
}
