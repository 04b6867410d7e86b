//! The start of a kernel's process: its private directory, the process itself, the first answer.

use std::{
    os::unix::fs::DirBuilderExt,
    path::{Path, PathBuf},
    process::Stdio,
    time::{Duration, SystemTime},
};

use callboard_protocol::{
    jupyter::{Channel, JupyterMessage, OwnHeader},
    zmq::SigningKey,
};
use serde_json::json;
use tokio::{
    process::{Child, Command},
    sync::mpsc,
};

use super::{
    isolation::{SessionUser, give},
    process::LaunchError,
    sockets::{CONTROL, FromKernel, HEARTBEAT, IOPUB, SHELL, STDIN, Sockets},
};

/// Says that the process will be given a uid of its own.
const ISOLATED_VARIABLE: &str = "CALLBOARD_ISOLATED";
/// How long to wait for the answer to one readiness probe before the next.
const PROBE_EVERY: Duration = Duration::from_millis(250);
/// Longest directory whose socket paths fit in the 108 bytes of `sockaddr_un`.
const SOCKET_DIRECTORY_LENGTH_MAX: usize = 96;
/// Lines of the process's own log shown when it does not come up.
const LOG_TAIL_LINES: usize = 6;

/// Writes the file that tells a kernel its sockets, in `directory`, and its key.
pub(super) fn write_connection(
    directory: &SocketDirectory,
    key: &SigningKey,
) -> Result<PathBuf, LaunchError> {
    let connection_file = directory.place().join("connection.json");
    let connection = serde_json::json!({
        "transport": "ipc", "ip": directory.prefix(), "key": key.as_str(),
        "signature_scheme": "hmac-sha256", "shell_port": SHELL, "iopub_port": IOPUB,
        "stdin_port": STDIN, "control_port": CONTROL, "hb_port": HEARTBEAT,
    });
    std::fs::write(&connection_file, connection.to_string())
        .map_err(|source| LaunchError::Directory { path: directory.path.clone(), source })?;
    Ok(connection_file)
}

/// Keeps what concerns the node only out of a process's environment.
pub(super) fn without_our_variables(command: &mut Command) {
    for (name, _) in std::env::vars_os() {
        if name.to_string_lossy().starts_with("CALLBOARD_") {
            command.env_remove(name);
        }
    }
    command.env("PYDEVD_DISABLE_FILE_VALIDATION", "1");
}

/// Tells a process whether it will be isolated from the node, and then keeps the node's keys to an
/// object store out of its environment.
pub(super) fn set_isolated(command: &mut Command, is_isolated: bool) -> &mut Command {
    if is_isolated {
        command.env(ISOLATED_VARIABLE, "1");
        for (name, _) in std::env::vars_os() {
            if name.to_string_lossy().starts_with("AWS_") {
                command.env_remove(name);
            }
        }
    }
    command
}

/// Starts `module` as a kernel whose sockets and log are in `directory`, in a process group of its
/// own; `adjust` adds to its environment.
pub(super) fn spawn(
    program: &Path,
    module: &str,
    directory: &SocketDirectory,
    key: &SigningKey,
    adjust: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<Child, LaunchError> {
    let connection_file = write_connection(directory, key)?;
    let mut command = Command::new(program);
    command.args(["-m", module, "-f"]).arg(&connection_file);
    spawn_logged(command, directory, adjust)
}

/// Starts a command whose log is in `directory`, in a process group of its own; `adjust` adds to its
/// environment.
pub(super) fn spawn_logged(
    mut command: Command,
    directory: &SocketDirectory,
    adjust: impl FnOnce(&mut Command) -> &mut Command,
) -> Result<Child, LaunchError> {
    let fail = |source| LaunchError::Directory { path: directory.path.clone(), source };
    let log = std::fs::File::create(directory.log()).map_err(fail)?;
    let log_too = log.try_clone().map_err(fail)?;
    without_our_variables(&mut command);
    command.stdin(Stdio::null()).stdout(log).stderr(log_too).process_group(0).kill_on_drop(true);
    let child = adjust(&mut command).spawn().map_err(|source| LaunchError::Spawn {
        program: command.as_std().get_program().into(),
        source,
    })?;
    if let Some(pid) = child.id() {
        directory.note_pid(pid)?;
    }
    Ok(child)
}

/// Asks until an answer and its `idle` status arrive, so that no output can be missed after.
pub(super) async fn probe(sockets: &Sockets, received: &mut mpsc::UnboundedReceiver<FromKernel>) {
    let (mut has_reply, mut has_status) = (false, false);
    while !(has_reply && has_status) {
        let msg_id = uuid::Uuid::new_v4().to_string();
        let header = OwnHeader {
            msg_id: &msg_id,
            msg_type: "kernel_info_request",
            session: "callboard",
            at: SystemTime::now(),
        };
        sockets.send(JupyterMessage::own(Channel::Shell, header, &json!({})));
        (has_reply, has_status) = (false, false);
        let answered = async {
            while let Some(FromKernel { message, .. }) = received.recv().await {
                if message.parent_msg_id().as_deref() == Some(msg_id.as_str()) {
                    has_reply |= message.channel == Channel::Shell;
                    has_status |= message.channel == Channel::Iopub
                        && message.content.windows(6).any(|window| window == b"\"idle\"");
                }
                if has_reply && has_status {
                    break;
                }
            }
        };
        let _ = tokio::time::timeout(PROBE_EVERY, answered).await;
    }
}

/// A private directory with short enough a path for sockets. Removed when dropped.
#[derive(Debug)]
pub(super) struct SocketDirectory {
    pub(super) path: PathBuf,
    run_dir: PathBuf,
    /// Where the sockets are instead, if the process makes them under another uid.
    lent: Option<PathBuf>,
}

impl SocketDirectory {
    pub(super) fn create(run_dir: &Path) -> Result<Self, LaunchError> {
        let mut name = uuid::Uuid::new_v4().simple().to_string();
        name.truncate(12);
        let mut path = run_dir.join(&name);
        if path.as_os_str().len() > SOCKET_DIRECTORY_LENGTH_MAX {
            path = std::env::temp_dir().join(format!("callboard-{name}"));
        }
        std::fs::DirBuilder::new()
            .mode(0o700)
            .recursive(false)
            .create(&path)
            .map_err(|source| LaunchError::Directory { path: path.clone(), source })?;
        Ok(Self { path, run_dir: run_dir.to_owned(), lent: None })
    }

    /// Has the sockets and the connection file in a directory that other users can reach. The log
    /// stays: what the node reads must not be exchanged for a link.
    pub(super) fn lend(&mut self) -> Result<(), LaunchError> {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        let path = std::env::temp_dir().join(format!("callboard-sockets-{name}"));
        std::fs::DirBuilder::new()
            .mode(0o700)
            .create(&path)
            .map_err(|source| LaunchError::Directory { path: path.clone(), source })?;
        self.lent = Some(path);
        Ok(())
    }

    /// Gives that directory to the user of a session.
    pub(super) fn give_to(&self, user: &SessionUser) -> Result<(), LaunchError> {
        let path = self.place();
        give(path, user.uid)
            .map_err(|source| LaunchError::Directory { path: path.to_owned(), source })
    }

    /// Where the sockets and the connection file are.
    fn place(&self) -> &Path {
        self.lent.as_deref().unwrap_or(&self.path)
    }

    /// What the paths of the kernel's sockets begin with.
    pub(super) fn prefix(&self) -> PathBuf {
        self.place().join("k")
    }

    /// Where the Python side hands its state over.
    pub(super) fn state_socket(&self) -> PathBuf {
        self.path.join("state")
    }

    /// Where the process's own words go.
    pub(super) fn log(&self) -> PathBuf {
        self.path.join("log")
    }

    /// Notes the process, for the case that this life of the node ends first.
    pub(super) fn note_pid(&self, pid: u32) -> Result<(), LaunchError> {
        std::fs::write(self.pid_file(), pid.to_string())
            .map_err(|source| LaunchError::Directory { path: self.path.clone(), source })
    }

    /// Where the node finds the process if this life of the node ends first.
    fn pid_file(&self) -> PathBuf {
        let name = self.path.file_name().unwrap_or_default().to_string_lossy();
        self.run_dir.join(format!("{name}.pid"))
    }

    pub(super) async fn log_tail(&self) -> String {
        let log = tokio::fs::read_to_string(self.log()).await.unwrap_or_default();
        let lines: Vec<&str> = log.lines().collect();
        lines[lines.len().saturating_sub(LOG_TAIL_LINES)..].join(" | ")
    }
}

impl Drop for SocketDirectory {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(self.pid_file());
        for path in self.lent.iter().chain([&self.path]) {
            let _ = std::fs::remove_dir_all(path);
        }
    }
}
