//! Which kernel of the cluster a proxy stands for, and what becomes of it when the proxy ends.

use callboard_client::{Client, KernelClient};
use callboard_protocol::{
    Fault, FaultCode, KernelId,
    control::{KernelOptions, KernelSettings, StartKernel},
};

use crate::{
    connection::{ConnectionFile, Note},
    error::ProxyError,
};

/// As many as survive the loss of one.
const REPLICAS: u8 = 3;

/// Which kernel of the cluster a proxy stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Which {
    /// The one that the connection file notes, else a new one.
    Own,
    /// The one of this id, which is started if there is none.
    Id(KernelId),
    /// One that exists, by id, name or unambiguous start of an id.
    Existing(String),
}

impl Which {
    /// What becomes of the kernel unless told otherwise: whoever starts one ends it.
    #[must_use]
    pub fn on_exit(&self) -> OnExit {
        match self {
            Self::Own | Self::Id(_) => OnExit::Stop,
            Self::Existing(_) => OnExit::Keep,
        }
    }
}

/// What becomes of the kernel when its proxy is told to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnExit {
    /// It goes on.
    Keep,
    /// It is stopped for good.
    Stop,
}

/// Finds the kernel, or starts it, and notes it in the connection file. A restart that is not known
/// to have happened is made up for.
pub(crate) async fn open(
    client: &Client,
    which: &Which,
    settings: &KernelSettings,
    connection: &mut ConnectionFile,
) -> Result<KernelClient, ProxyError> {
    let control = client.control();
    let noted = connection.note();
    let id = match which {
        Which::Existing(text) => control.find_kernel(text).await?.kernel,
        Which::Id(id) => start(client, *id, settings).await?,
        Which::Own => match noted {
            Some(note) if exists(client, note.kernel).await? => note.kernel,
            _ => {
                // Noted first: a process that takes the place of this one finds it in any case.
                let id = KernelId::generate();
                connection.set_note(Some(Note { kernel: id, restart: false }))?;
                start(client, id, settings).await?
            }
        },
    };
    let kernel = client.kernel(id);
    if noted == Some(Note { kernel: id, restart: true }) {
        kernel.restart().await?;
    }
    connection.set_note(Some(Note { kernel: id, restart: false }))?;
    Ok(kernel)
}

async fn exists(client: &Client, kernel: KernelId) -> Result<bool, Fault> {
    match client.control().find_kernel(&kernel.to_string()).await {
        Ok(_) => Ok(true),
        Err(fault) if fault.code == FaultCode::NotFound => Ok(false),
        Err(fault) => Err(fault),
    }
}

async fn start(
    client: &Client,
    kernel: KernelId,
    settings: &KernelSettings,
) -> Result<KernelId, Fault> {
    let request = StartKernel {
        kernel,
        name: None,
        replicas: REPLICAS,
        options: KernelOptions::default(),
        origin: None,
        settings: settings.clone(),
    };
    client.control().start_kernel(&request).await.map(|spec| spec.kernel)
}
