//! What handlers of `/api/kernels/{id}…` begin with: who asks, which kernel is meant, and the bus on
//! behalf of the kernel's owner, in whose name whatever is done to it is done.

use actix_web::{FromRequest, HttpRequest, dev::Payload, http::StatusCode, web};
use callboard_client::{Client, KernelClient};
use callboard_protocol::control::KernelSpec;
use futures::future::LocalBoxFuture;

use crate::{auth::Caller, errors::ApiError, paths::Id, state::GatewayState};

/// The kernel that a path names, of whoever may see it.
#[derive(Debug)]
pub(crate) struct Found {
    pub(crate) caller: Caller,
    pub(crate) spec: KernelSpec,
    /// The bus on behalf of the kernel's owner.
    pub(crate) client: Client,
}

/// The same, of whoever may change it.
#[derive(Debug)]
pub(crate) struct Changing(pub(crate) Found);

impl Found {
    /// The kernel on the bus.
    pub(crate) fn kernel(&self) -> KernelClient {
        self.client.kernel(self.spec.kernel)
    }
}

impl FromRequest for Found {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let caller = Caller::from_request(request, payload);
        let path = web::Path::<Id>::from_request(request, payload);
        let state = request.app_data::<web::Data<GatewayState>>().cloned();
        Box::pin(async move {
            let caller = caller.await?;
            let path = path.await.map_err(|error| ApiError::bad_request(error.to_string()))?;
            let Some(state) = state else {
                return Err(ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "no gateway"));
            };
            let spec = state.find(&caller, &path.id).await?;
            let client = state.client_for_owner_of(&spec);
            Ok(Self { caller, spec, client })
        })
    }
}

impl FromRequest for Changing {
    type Error = ApiError;
    type Future = LocalBoxFuture<'static, Result<Self, ApiError>>;

    fn from_request(request: &HttpRequest, payload: &mut Payload) -> Self::Future {
        let found = Found::from_request(request, payload);
        Box::pin(async move {
            let found = found.await?;
            found.caller.may_change()?;
            Ok(Self(found))
        })
    }
}
