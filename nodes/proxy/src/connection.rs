//! The connection file: where to listen, how to sign, and, as a note of the proxy's own, which
//! kernel it stands for. The front-end writes it, passes it to each process that it starts in place
//! of another, and removes it, and the note with it.

use std::{
    fmt, fs, io,
    io::Write as _,
    path::{Path, PathBuf},
};

use callboard_protocol::{KernelId, zmq::SigningKey};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::error::ProxyError;

/// The field of the note. Jupyter programs pass over fields they do not know.
const NOTE: &str = "callboard";
/// The one way of signing there is.
const SIGNATURE_SCHEME: &str = "hmac-sha256";

/// What the file says.
#[derive(Debug, Clone, Deserialize)]
struct Content {
    #[serde(default)]
    transport: Transport,
    ip: String,
    shell_port: u16,
    control_port: u16,
    stdin_port: u16,
    iopub_port: u16,
    hb_port: u16,
    #[serde(default)]
    key: String,
    #[serde(default)]
    signature_scheme: String,
    #[serde(default)]
    curve_publickey: Option<String>,
    #[serde(default, rename = "callboard")]
    note: Option<Note>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Transport {
    #[default]
    Tcp,
    Ipc,
}

/// Which kernel the proxy of this file stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Note {
    pub(crate) kernel: KernelId,
    /// Whether it was to begin anew, and is not known to have.
    #[serde(default)]
    pub(crate) restart: bool,
}

/// Where a socket listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Endpoint {
    Tcp(String, u16),
    Ipc(PathBuf),
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp(host, port) if host.contains(':') => write!(f, "tcp://[{host}]:{port}"),
            Self::Tcp(host, port) => write!(f, "tcp://{host}:{port}"),
            Self::Ipc(path) => write!(f, "ipc://{}", path.display()),
        }
    }
}

/// A connection file.
#[derive(Debug)]
pub(crate) struct ConnectionFile {
    path: PathBuf,
    content: Content,
}

/// Where the five sockets listen.
#[derive(Debug, Clone)]
pub(crate) struct Endpoints {
    pub(crate) shell: Endpoint,
    pub(crate) control: Endpoint,
    pub(crate) stdin: Endpoint,
    pub(crate) iopub: Endpoint,
    pub(crate) heartbeat: Endpoint,
}

impl ConnectionFile {
    /// Reads a file.
    ///
    /// # Errors
    /// [`ProxyError::Connection`] with the reason in words.
    pub(crate) fn load(path: &Path) -> Result<Self, ProxyError> {
        let fail = |why: String| ProxyError::Connection { path: path.to_owned(), why };
        let text = fs::read(path).map_err(|error| {
            fail(format!("{error}; Jupyter writes it before it starts a kernel"))
        })?;
        let content: Content = serde_json::from_slice(&text)
            .map_err(|error| fail(format!("it is none that Jupyter writes ({error})")))?;
        if !content.key.is_empty() && content.signature_scheme != SIGNATURE_SCHEME {
            let asked = &content.signature_scheme;
            return Err(fail(format!(
                "it asks for messages signed with '{asked}': set Session.signature_scheme to '{SIGNATURE_SCHEME}'"
            )));
        }
        if content.curve_publickey.is_some() {
            let why = "it asks for CurveZMQ encryption, which the proxy does not have: set \
                       KernelManager.transport_encryption to 'disabled', or its transport to 'ipc'";
            return Err(fail(why.to_owned()));
        }
        Ok(Self { path: path.to_owned(), content })
    }

    /// The key that signs its messages.
    pub(crate) fn key(&self) -> SigningKey {
        SigningKey::new(self.content.key.clone())
    }

    pub(crate) fn endpoints(&self) -> Endpoints {
        let Content { transport, ip, .. } = &self.content;
        let at = |port: u16| match transport {
            Transport::Tcp if ip.is_empty() || ip == "*" => Endpoint::Tcp("0.0.0.0".into(), port),
            Transport::Tcp => Endpoint::Tcp(ip.trim_matches(['[', ']']).to_owned(), port),
            Transport::Ipc => Endpoint::Ipc(format!("{ip}-{port}").into()),
        };
        Endpoints {
            shell: at(self.content.shell_port),
            control: at(self.content.control_port),
            stdin: at(self.content.stdin_port),
            iopub: at(self.content.iopub_port),
            heartbeat: at(self.content.hb_port),
        }
    }

    /// Which kernel it stands for, as it was noted last.
    pub(crate) fn note(&self) -> Option<Note> {
        self.content.note
    }

    /// Notes which kernel it stands for, or that it stands for none any more. A file that the
    /// front-end has removed stays removed.
    ///
    /// # Errors
    /// [`ProxyError::Connection`] if the file cannot be replaced.
    pub(crate) fn set_note(&mut self, note: Option<Note>) -> Result<(), ProxyError> {
        if self.content.note == note {
            return Ok(());
        }
        self.content.note = note;
        match self.write(note) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                let why = format!("the kernel cannot be noted in it ({error})");
                Err(ProxyError::Connection { path: self.path.clone(), why })
            }
            _ => Ok(()),
        }
    }

    fn write(&self, note: Option<Note>) -> io::Result<()> {
        let mut content: Value = serde_json::from_slice(&fs::read(&self.path)?)?;
        let fields = content.as_object_mut().ok_or(io::ErrorKind::InvalidData)?;
        match note {
            Some(note) => fields.insert(NOTE.to_owned(), serde_json::to_value(note)?),
            None => fields.remove(NOTE),
        };
        // Only the owner may read it, as of any temporary file and of any connection file.
        let folder = self.path.parent().filter(|it| !it.as_os_str().is_empty());
        let mut file = tempfile::NamedTempFile::new_in(folder.unwrap_or(Path::new(".")))?;
        file.write_all(&serde_json::to_vec_pretty(&content)?)?;
        file.persist(&self.path)?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn file(changes: &Value) -> (tempfile::TempDir, PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("kernel.json");
        let mut content = json!({
            "transport": "tcp", "ip": "127.0.0.1", "shell_port": 1, "iopub_port": 2,
            "stdin_port": 3, "control_port": 4, "hb_port": 5, "key": "k",
            "signature_scheme": "hmac-sha256", "kernel_name": "callboard",
        });
        let fields = content.as_object_mut().unwrap();
        fields.extend(changes.as_object().unwrap().clone());
        fs::write(&path, content.to_string()).unwrap();
        (folder, path)
    }

    #[test]
    fn endpoints_follow_from_transport_and_address() {
        let shell = |changes: Value| {
            let (_folder, path) = file(&changes);
            ConnectionFile::load(&path).unwrap().endpoints().shell.to_string()
        };
        assert_eq!(shell(json!({})), "tcp://127.0.0.1:1");
        assert_eq!(shell(json!({ "ip": "*" })), "tcp://0.0.0.0:1");
        assert_eq!(shell(json!({ "ip": "::1" })), "tcp://[::1]:1");
        assert_eq!(shell(json!({ "transport": "ipc", "ip": "/run/k" })), "ipc:///run/k-1");
    }

    #[test]
    fn a_note_outlives_the_process_and_changes_nothing_else() {
        let (_folder, path) = file(&json!({}));
        let before: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        let note = Note { kernel: KernelId::generate(), restart: true };
        ConnectionFile::load(&path).unwrap().set_note(Some(note)).unwrap();
        let mut again = ConnectionFile::load(&path).unwrap();
        assert_eq!(again.note(), Some(note));
        again.set_note(None).unwrap();
        let after: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(after, before);
    }

    #[test]
    fn a_removed_file_stays_removed() {
        let (_folder, path) = file(&json!({}));
        let mut connection = ConnectionFile::load(&path).unwrap();
        fs::remove_file(&path).unwrap();
        let note = Note { kernel: KernelId::generate(), restart: false };
        connection.set_note(Some(note)).unwrap();
        assert!(!path.exists());
    }

    #[test]
    fn what_cannot_be_done_is_refused_with_a_next_step() {
        let refusal = |changes: Value| {
            let (_folder, path) = file(&changes);
            ConnectionFile::load(&path).unwrap_err().to_string()
        };
        assert!(refusal(json!({ "signature_scheme": "hmac-md5" })).contains("set Session."));
        assert!(refusal(json!({ "curve_publickey": "x" })).contains("transport_encryption"));
        assert!(refusal(json!({ "shell_port": "one" })).contains("none that Jupyter writes"));
        let missing = ConnectionFile::load(Path::new("/nowhere/k.json")).unwrap_err().to_string();
        assert!(missing.contains("/nowhere/k.json cannot be used: No such file"), "{missing}");
    }
}
