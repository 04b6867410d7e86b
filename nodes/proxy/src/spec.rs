//! The kernelspec: how Jupyter programs start a proxy.

use std::path::Path;

use serde_json::{Value, json};

/// The picture beside a kernelspec.
pub const LOGO: &[u8] = include_bytes!("../../gateway/assets/logo-svg.svg");
/// The picture's file, as Jupyter programs look for it.
pub const LOGO_FILE: &str = "logo-svg.svg";

/// The language of kernels that are not of a kernelspec of the nodes.
pub const PYTHON: &str = "python";

/// What a kernelspec says.
#[derive(Debug, Clone, Copy)]
pub struct Kernelspec<'a> {
    /// What people choose it by.
    pub display_name: &'a str,
    /// Its language, as notebooks name it.
    pub language: &'a str,
    /// This program.
    pub program: &'a Path,
    /// The credentials, by an absolute path: front-ends start kernels in any directory.
    pub context: &'a Path,
    /// Further arguments of `kernelspec run`.
    pub arguments: &'a [String],
}

impl Kernelspec<'_> {
    /// The content of `kernel.json`.
    #[must_use]
    pub fn to_json(&self) -> Value {
        let text = |path: &Path| path.to_string_lossy().into_owned();
        let mut argv = vec![text(self.program), "kernelspec".into(), "run".into()];
        argv.extend(["--context".into(), text(self.context)]);
        argv.extend(self.arguments.iter().cloned());
        argv.extend(["-f".into(), "{connection_file}".into()]);
        json!({
            "argv": argv,
            "display_name": self.display_name,
            "language": self.language,
            "interrupt_mode": "message",
            "metadata": { "debugger": self.language == PYTHON, "callboard": { "context": text(self.context) } },
        })
    }
}

/// The credentials that a `kernel.json` names, if it is one of these.
#[must_use]
pub fn context_of(kernel_json: &Value) -> Option<&str> {
    kernel_json["metadata"]["callboard"]["context"].as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kernelspec_starts_this_program_with_the_connection_file_last() {
        let spec = Kernelspec {
            display_name: "Python 3 (Callboard)",
            language: PYTHON,
            program: Path::new("/p/callboard"),
            context: Path::new("/c/gateway.json"),
            arguments: &["--on-exit".to_owned(), "keep".to_owned()],
        };
        let json = spec.to_json();
        let argv: Vec<&str> =
            json["argv"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
        assert_eq!(
            argv.join(" "),
            "/p/callboard kernelspec run --context /c/gateway.json --on-exit keep -f {connection_file}"
        );
        assert_eq!(context_of(&json), Some("/c/gateway.json"));
        assert_eq!(context_of(&json!({ "argv": ["python"] })), None);
    }
}
