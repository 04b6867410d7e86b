//! Who asked what: several programs may use one proxy, and each gets the answers to its own requests.

use std::collections::{HashMap, VecDeque};

use bytes::Bytes;

/// Requests whose askers are remembered. Not all are answered, so the oldest are forgotten: more
/// than a kernel's clients have under way at a time.
const ROUTES_MAX: usize = 10_000;

/// Who asked what.
#[derive(Debug, Default)]
pub(crate) struct Routes {
    askers: HashMap<String, Vec<Bytes>>,
    order: VecDeque<String>,
}

impl Routes {
    /// Remembers that `asker` sent the request `msg_id`.
    pub(crate) fn note(&mut self, msg_id: &str, asker: Vec<Bytes>) {
        if self.askers.insert(msg_id.to_owned(), asker).is_none() {
            self.order.push_back(msg_id.to_owned());
        }
        while self.order.len() > ROUTES_MAX {
            if let Some(oldest) = self.order.pop_front() {
                self.askers.remove(&oldest);
            }
        }
    }

    /// Who sent the request `msg_id`.
    pub(crate) fn asker(&self, msg_id: &str) -> Option<&[Bytes]> {
        self.askers.get(msg_id).map(Vec::as_slice)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_askers_are_forgotten_first() {
        let mut routes = Routes::default();
        let asker = |text: &'static str| vec![Bytes::from_static(text.as_bytes())];
        routes.note("first", asker("a"));
        (1..ROUTES_MAX).for_each(|number| routes.note(&number.to_string(), asker("b")));
        routes.note("first", asker("c"));
        assert_eq!(routes.asker("first"), Some(asker("c").as_slice()));
        routes.note("last", asker("d"));
        assert_eq!(routes.asker("first"), None);
        assert_eq!(routes.asker("1"), Some(asker("b").as_slice()));
        assert_eq!(routes.order.len(), routes.askers.len());
    }
}
