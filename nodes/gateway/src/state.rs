//! What all handlers share. None of it is worth keeping: another gateway has the same.

use std::sync::{Arc, Mutex, PoisonError};

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
    /// The list of all kernels as it was last told, with its version.
    pub(crate) listed: Mutex<Option<(u64, Arc<Vec<KernelSpec>>)>>,
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

    /// All kernels, as the leader of the system group knows them now. It does not repeat a list that
    /// this gateway has.
    pub(crate) async fn list(&self, caller: &Caller) -> Result<Arc<Vec<KernelSpec>>, ApiError> {
        let had = self.listed.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let known = had.as_ref().map(|(version, _)| *version);
        let list = self.client_of(caller).control().list_kernels_unless(known).await?;
        if let Some((_, kernels)) = had.filter(|_| list.unchanged) {
            return Ok(kernels);
        }
        let kernels = Arc::new(list.kernels);
        let now = list.version.map(|version| (version, kernels.clone()));
        *self.listed.lock().unwrap_or_else(PoisonError::into_inner) = now;
        Ok(kernels)
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
