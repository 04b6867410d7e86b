//! Paths of requests, with the names of kernelspecs, files and kernels in them.
#![no_main]

#[path = "../../src/document.rs"]
#[allow(dead_code, reason = "each target uses a part")]
mod document;

libfuzzer_sys::fuzz_target!(|path: &str| {
    if let Some(allowed) = document::methods_of(path) {
        assert!(path.starts_with('/') && allowed.ends_with("OPTIONS"));
    }
});
