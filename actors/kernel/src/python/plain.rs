//! A stock ipykernel without Callboard, on its ZeroMQ sockets: what Callboard is measured against.

use std::path::Path;

use callboard_protocol::{
    jupyter::{Channel, JupyterMessage},
    zmq::SigningKey,
};
use nix::sys::signal::{Signal, killpg};
use tokio::sync::mpsc;

use super::{
    child::KernelChild,
    launch::{SocketDirectory, probe, spawn},
    process::LaunchError,
    sockets::{FromKernel, Sockets},
    supervised::{READY_WITHIN, ended},
};
use crate::running_cell::{IopubKind, classify};

/// A stock ipykernel (`python -m ipykernel_launcher`) over the `ipc` transport. Dropping it kills the
/// process.
#[derive(Debug)]
pub struct PlainKernel {
    child: KernelChild,
    sockets: Sockets,
    from_kernel: mpsc::UnboundedReceiver<FromKernel>,
    directory: SocketDirectory,
}

impl PlainKernel {
    /// Starts one whose sockets are below `run_dir`; returns once it answers.
    ///
    /// # Errors
    /// [`LaunchError`] if it does not come up.
    pub async fn launch(program: &Path, run_dir: &Path) -> Result<Self, LaunchError> {
        let directory = SocketDirectory::create(run_dir)?;
        let key = SigningKey::generate();
        let child = spawn(program, "ipykernel_launcher", &directory, &key, |command| command)?;
        let mut child = KernelChild::Started(child);
        let connecting = async {
            let (sender, mut from_kernel) = mpsc::unbounded_channel();
            let sockets = Sockets::connect(&directory.prefix(), &key, sender, None)
                .await
                .map_err(|error| LaunchError::Socket(error.to_string()))?;
            probe(&sockets, &mut from_kernel).await;
            Ok((sockets, from_kernel))
        };
        let connected = tokio::select! {
            connected = connecting => connected,
            _ = child.wait() => Err(ended(&mut child, &directory).await),
            () = tokio::time::sleep(READY_WITHIN) => {
                Err(LaunchError::TooSlow { log: directory.log_tail().await })
            }
        };
        let (sockets, from_kernel) = connected?;
        Ok(Self { child, sockets, from_kernel, directory })
    }

    /// Sends a request on the shell channel and waits until its reply and the `idle` status have
    /// both arrived; returns the reply.
    ///
    /// # Errors
    /// [`LaunchError::Ended`] if the process ended instead.
    pub async fn round_trip(
        &mut self,
        request: JupyterMessage,
        msg_id: &str,
    ) -> Result<JupyterMessage, LaunchError> {
        self.run(request, msg_id, drop).await
    }

    /// As [`Self::round_trip`]; every output of the request is handed to `on_output` on its way,
    /// in order.
    ///
    /// # Errors
    /// [`LaunchError::Ended`] if the process ended instead.
    pub async fn run(
        &mut self,
        request: JupyterMessage,
        msg_id: &str,
        mut on_output: impl FnMut(JupyterMessage),
    ) -> Result<JupyterMessage, LaunchError> {
        self.sockets.send(request);
        let (mut reply, mut is_idle) = (None, false);
        loop {
            let message = tokio::select! {
                Some(heard) = self.from_kernel.recv() => heard.message,
                _ = self.child.wait() => {
                    return Err(ended(&mut self.child, &self.directory).await);
                }
            };
            if message.parent_msg_id().as_deref() != Some(msg_id) {
                continue;
            }
            match message.channel {
                Channel::Shell => reply = Some(message),
                Channel::Iopub => match classify(&message) {
                    IopubKind::Idle => is_idle = true,
                    IopubKind::Output => on_output(message),
                    IopubKind::Status | IopubKind::IdleEarly => {}
                },
                Channel::Control | Channel::Stdin => {}
            }
            if is_idle && let Some(reply) = reply.take() {
                return Ok(reply);
            }
        }
    }
}

impl Drop for PlainKernel {
    fn drop(&mut self) {
        if let Some(pid) = self.child.pid() {
            let _ = killpg(pid, Signal::SIGKILL);
        }
    }
}
