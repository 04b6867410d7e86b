//! The OpenAPI document, and what follows from it: which methods a path has.

use std::sync::LazyLock;

use serde_json::Value;

/// The document.
pub(crate) const OPENAPI: &str = include_str!("../openapi.json");

/// The segments of every path, and its methods.
static PATHS: LazyLock<Vec<(Vec<String>, String)>> = LazyLock::new(|| {
    let document: Value = serde_json::from_str(OPENAPI).unwrap_or_default();
    let paths = document["paths"].as_object().into_iter().flatten();
    paths
        .map(|(path, item)| {
            let segments = path.split('/').map(str::to_owned).collect();
            let methods = ["get", "post", "patch", "delete"];
            let mut allowed: Vec<String> = methods
                .into_iter()
                .filter(|method| item.get(method).is_some())
                .map(str::to_uppercase)
                .collect();
            if allowed.iter().any(|method| method == "GET") {
                allowed.push("HEAD".to_owned());
            }
            allowed.push("OPTIONS".to_owned());
            (segments, allowed.join(", "))
        })
        .collect()
});

/// The methods of a path, as `Allow` names them; `None` if there is no such path.
pub(crate) fn methods_of(path: &str) -> Option<String> {
    let without_token =
        path.strip_prefix("/t/").and_then(|rest| rest.find('/').map(|at| &rest[at..]));
    let segments: Vec<&str> = without_token.unwrap_or(path).split('/').collect();
    let matches = |pattern: &[String]| {
        pattern.len() == segments.len()
            && pattern
                .iter()
                .zip(&segments)
                .all(|(wanted, it)| wanted == it || (wanted.starts_with('{') && !it.is_empty()))
    };
    PATHS.iter().find(|(pattern, _)| matches(pattern)).map(|(_, allowed)| allowed.clone())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_methods_of_a_path_are_those_of_the_document() {
        let allowed = |path: &str| methods_of(path).unwrap_or_default();
        assert_eq!(allowed("/api/kernels"), "GET, POST, HEAD, OPTIONS");
        assert_eq!(allowed("/t/cb_a_b/api/kernels/1/interrupt"), "POST, OPTIONS");
        assert_eq!(allowed("/api/kernels/1"), "GET, DELETE, HEAD, OPTIONS");
        for nowhere in ["/", "", "/api/kernels/", "/api/contents", "/t/x"] {
            assert_eq!(methods_of(nowhere), None, "{nowhere}");
        }
    }
}
