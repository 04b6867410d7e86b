//! What is asked of the control plane, checked before anything is done.

use std::collections::BTreeMap;

use callboard_protocol::{
    DiskId, Fault, FaultCode, KernelId, NodeId, ReplicaId, control::StartKernel, ids::is_token,
    users::TokenEntry,
};
use serde::{Deserialize, Serialize};

/// Longest name of a kernel in bytes; names stand in subjects and table columns.
pub const NAME_LENGTH_MAX: usize = callboard_protocol::ids::TOKEN_LENGTH_MAX;
/// Longest path of a directory; the limit of Linux.
const PATH_LENGTH_MAX: usize = 4_096;
/// Characters of a SHA-256 in hexadecimal.
const DIGEST_LENGTH: usize = 64;
/// Longest label of an access token in bytes: a column of a table, not a text.
const LABEL_LENGTH_MAX: usize = 100;
/// Labels of one kernel, and their bytes together: every node has them in memory.
const LABELS_MAX: usize = 16;
const LABELS_BYTES_MAX: usize = 4 << 10;
/// How many replicas a kernel may have: odd, as an even one adds no safety.
const REPLICA_COUNTS: [u8; 3] = [1, 3, 5];

/// What `register_node` takes: a node is there and wants its copy of the desired state.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RegisterNode {
    /// Which.
    pub node: NodeId,
    /// Its disk.
    pub disk: DiskId,
    /// Its member of the system group whose log on this disk is lost, if one is.
    #[serde(default)]
    pub lost: Option<ReplicaId>,
}

/// What `register_node` answers.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Registered {
    /// The node's member id in the system group.
    pub member: ReplicaId,
}

/// Whether a kernel may be asked for like this.
pub(crate) fn check_start(request: &StartKernel) -> Result<(), Fault> {
    let bad = |message: String| Err(Fault::new(FaultCode::BadRequest, message));
    if !REPLICA_COUNTS.contains(&request.replicas) {
        return bad(format!(
            "a kernel cannot have {} replicas: ask for 1, 3 or 5 (an even number survives no more \
             losses than the odd one below it)",
            request.replicas
        ));
    }
    if let Some(directory) = &request.settings.directory
        && (!directory.starts_with('/')
            || directory.len() > PATH_LENGTH_MAX
            || directory.contains('\0'))
    {
        return bad(format!(
            "'{directory}' cannot be a kernel's directory: name an absolute path of at most \
             {PATH_LENGTH_MAX} bytes that is there on every node"
        ));
    }
    if let (Some(_), Some(kernelspec)) = (&request.origin, &request.settings.kernelspec) {
        return bad(format!(
            "a kernel of '{kernelspec}' cannot begin with a state, as its state is not replicated: \
             start it without one"
        ));
    }
    match request.name.as_deref() {
        Some(name) if !is_token(name) => bad(format!(
            "'{name}' cannot name a kernel: use 1 to {NAME_LENGTH_MAX} letters, digits, '-' or '_'"
        )),
        Some(name) if name.parse::<KernelId>().is_ok() => {
            bad(format!("'{name}' cannot name a kernel, as it looks like an id: choose a word"))
        }
        _ => Ok(()),
    }
}

/// Whether these labels may be kept with a kernel.
pub(crate) fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), Fault> {
    let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    let are_names = labels.keys().all(|key| is_token(key));
    if labels.len() > LABELS_MAX || bytes > LABELS_BYTES_MAX || !are_names {
        let text = format!(
            "a kernel has at most {LABELS_MAX} labels of {LABELS_BYTES_MAX} bytes together, with \
             names of letters, digits, '-' and '_': shorten them"
        );
        return Err(Fault::new(FaultCode::BadRequest, text));
    }
    Ok(())
}

/// Whether a token may be kept like this.
pub(crate) fn check_token(entry: &TokenEntry) -> Result<(), Fault> {
    let bad = |message: String| Err(Fault::new(FaultCode::BadRequest, message));
    let is_hex = |byte: u8| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte);
    if entry.sha256.len() != DIGEST_LENGTH || !entry.sha256.bytes().all(is_hex) {
        return bad(format!(
            "a token is kept as its SHA-256: send {DIGEST_LENGTH} lower-case hexadecimal digits, \
             never the token"
        ));
    }
    if let Some(label) = &entry.label
        && (label.len() > LABEL_LENGTH_MAX || label.chars().any(char::is_control))
    {
        return bad(format!(
            "a token's label is one line of at most {LABEL_LENGTH_MAX} bytes: shorten it"
        ));
    }
    if entry.expires_ms.is_some_and(|expires_ms| expires_ms <= entry.created_ms) {
        return bad("this token would never be valid: let it expire after it is made".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use callboard_protocol::control::KernelSettings;

    use super::*;

    fn start(name: Option<&str>, replicas: u8) -> Result<(), Fault> {
        let name = name.map(str::to_owned);
        check_start(&StartKernel {
            kernel: KernelId::generate(),
            name,
            replicas,
            origin: None,
            settings: Default::default(),
            options: Default::default(),
        })
    }

    #[test]
    fn only_odd_replica_counts_up_to_five_are_taken() {
        for replicas in 0..=u8::MAX {
            assert_eq!(start(None, replicas).is_ok(), [1, 3, 5].contains(&replicas), "{replicas}");
        }
        let fault = start(None, 4).unwrap_err();
        assert!(fault.message.contains("ask for 1, 3 or 5"), "{fault}");
    }

    #[test]
    fn a_directory_is_an_absolute_path() {
        let start = |directory: &str| {
            let settings = KernelSettings {
                directory: Some(directory.to_owned()),
                ..KernelSettings::default()
            };
            check_start(&StartKernel {
                kernel: KernelId::generate(),
                name: None,
                replicas: 3,
                options: Default::default(),
                origin: None,
                settings,
            })
        };
        assert!(start("/data/of everyone").is_ok());
        for bad in ["", "relative", "/nul\0", &"/x".repeat(3_000)] {
            assert_eq!(start(bad).unwrap_err().code, FaultCode::BadRequest, "{bad}");
        }
    }

    #[test]
    fn a_name_is_a_token_and_no_id() {
        assert!(start(Some("my-analysis_2"), 3).is_ok());
        let long = "x".repeat(NAME_LENGTH_MAX + 1);
        let id = KernelId::generate().to_string();
        for bad in ["", "two words", "a.b", "ünï", &long, &id] {
            let fault = start(Some(bad), 3).unwrap_err();
            assert_eq!(fault.code, FaultCode::BadRequest, "{bad}");
        }
    }

    #[test]
    fn a_token_is_kept_as_a_digest_with_a_short_label_and_a_time_to_live() {
        let good = TokenEntry {
            sha256: "0f".repeat(32),
            label: Some("laptop of Ada".to_owned()),
            created_ms: 5,
            expires_ms: Some(6),
        };
        assert_eq!(check_token(&good), Ok(()));
        assert!(check_token(&TokenEntry { label: None, expires_ms: None, ..good.clone() }).is_ok());
        let (sha256, label) = (|it: &str| it.to_owned(), |it: &str| Some(it.to_owned()));
        for bad in [
            TokenEntry { sha256: sha256("cb_k3x9q0a7b2mz_secret"), ..good.clone() },
            TokenEntry { sha256: "0F".repeat(32), ..good.clone() },
            TokenEntry { sha256: "é".repeat(32), ..good.clone() },
            TokenEntry { label: label("two\nlines"), ..good.clone() },
            TokenEntry { label: label(&"x".repeat(101)), ..good.clone() },
            TokenEntry { expires_ms: Some(5), ..good.clone() },
        ] {
            let fault = check_token(&bad).unwrap_err();
            assert_eq!(fault.code, FaultCode::BadRequest, "{bad:?}");
        }
    }
}
