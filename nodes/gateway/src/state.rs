//! What all handlers share. None of it is worth keeping: another gateway has the same.

use std::sync::Arc;

use callboard_client::Client;
use callboard_protocol::control::KernelSpec;

use crate::{
    activity::Activity,
    auth::{Caller, Users},
    errors::ApiError,
    metrics::Metrics,
    options::GatewayOptions,
};

/// What all handlers share.
#[derive(Debug)]
pub(crate) struct GatewayState {
    pub(crate) client: Client,
    pub(crate) users: Users,
    pub(crate) activity: Arc<Activity>,
    pub(crate) metrics: Metrics,
    pub(crate) options: GatewayOptions,
}

impl GatewayState {
    /// The bus on behalf of whoever asks.
    pub(crate) fn client_of(&self, caller: &Caller) -> Client {
        self.client.clone().for_owner(caller.user.clone())
    }

    /// The bus on behalf of a kernel's owner.
    pub(crate) fn client_for_owner_of(&self, spec: &KernelSpec) -> Client {
        self.client.clone().for_owner(spec.owner.clone())
    }

    /// The kernel that a path names, if the caller may see it.
    pub(crate) async fn find(&self, caller: &Caller, id: &str) -> Result<KernelSpec, ApiError> {
        let missing = || {
            let id: String = id.chars().take(64).collect();
            ApiError::not_found(format!("there is no kernel {id}"))
        };
        // Names are for people at a command line; here an id is meant.
        if id.parse::<callboard_protocol::KernelId>().is_err() {
            return Err(missing());
        }
        let spec = self.client_of(caller).control().find_kernel(id).await?;
        if caller.sees(&spec.owner) { Ok(spec) } else { Err(missing()) }
    }
}
