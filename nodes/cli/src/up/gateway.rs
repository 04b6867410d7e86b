//! The gateway of `up`: on an address of its own that is the same at the next run, with a token for
//! whoever started the cluster.

use std::{
    fs, io,
    io::Write as _,
    net::{SocketAddr, TcpListener},
    os::unix::fs::OpenOptionsExt as _,
    path::{Path, PathBuf},
    time::{SystemTime, UNIX_EPOCH},
};

use callboard_client::Client;
use callboard_gateway::{Gateway, GatewayOptions};
use callboard_protocol::{
    OwnerId,
    users::{AccessToken, UserRole},
};
use serde::{Deserialize, Serialize};

use super::state::cannot;
use crate::exit::Failure;

/// What is remembered of the gateway, in `credentials/jupyter.json`; it holds a secret.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct JupyterAccess {
    /// Where it listens.
    pub(super) url: String,
    /// A token of the owner `default`.
    pub(super) token: String,
    address: SocketAddr,
}

/// Binds the gateway and sees to a token for it.
///
/// # Errors
/// A [`Failure`] if its address cannot be had, or the cluster makes no token.
pub(super) async fn open(
    data_dir: &Path,
    listen: SocketAddr,
    operator: &Client,
    client: Client,
) -> Result<(Gateway, JupyterAccess), Failure> {
    let file = file(data_dir);
    let before =
        fs::read(&file).ok().and_then(|it| serde_json::from_slice::<JupyterAccess>(&it).ok());
    let listen = free_like(listen, before.as_ref().map(|it| it.address));
    let gateway = Gateway::bind(client, GatewayOptions { listen, ..GatewayOptions::default() })?;
    let token = match before {
        Some(before) if is_valid(operator, &before.token).await => before.token,
        _ => new_token(operator).await?,
    };
    let address = gateway.address();
    let access = JupyterAccess { url: format!("http://{address}"), token, address };
    save(&file, &access).map_err(|error| cannot("write", &file, &error))?;
    Ok((gateway, access))
}

/// Where the gateway's address and token are kept.
pub(super) fn file(data_dir: &Path) -> PathBuf {
    data_dir.join("credentials/jupyter.json")
}

/// The address of the last run, if any port will do and that one is free.
fn free_like(listen: SocketAddr, before: Option<SocketAddr>) -> SocketAddr {
    let same = before.filter(|before| listen.port() == 0 && before.ip() == listen.ip());
    same.filter(|before| TcpListener::bind(before).is_ok()).unwrap_or(listen)
}

async fn is_valid(operator: &Client, token: &str) -> bool {
    let Ok(token) = token.parse::<AccessToken>() else { return false };
    let Ok(users) = operator.control().list_users().await else { return false };
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now_ms = u64::try_from(now.as_millis()).unwrap_or(u64::MAX);
    let tokens = users.users.iter().filter_map(|user| user.tokens.get(&token.id));
    tokens.into_iter().any(|entry| entry.admits(&token, now_ms))
}

async fn new_token(operator: &Client) -> Result<String, Failure> {
    let (control, user) = (operator.control(), OwnerId::default());
    control.add_user(user.clone(), UserRole::Admin).await?;
    Ok(control.add_token(user, Some("callboard up".to_owned()), None).await?.to_string())
}

fn save(file: &Path, access: &JupyterAccess) -> io::Result<()> {
    let mut open = fs::OpenOptions::new();
    let mut out = open.create(true).truncate(true).write(true).mode(0o600).open(file)?;
    out.write_all(&serde_json::to_vec_pretty(access)?)
}
