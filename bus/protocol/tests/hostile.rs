//! Whatever strangers put into headers and bodies is refused, or is the same after it is written again.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use callboard_protocol::{Envelope, control, history, kernel, users};
use proptest::{collection::vec, prelude::*};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::Value;

const HEADERS: [&str; 8] = [
    "Cb-Owner",
    "Cb-Message-Id",
    "Cb-Cause",
    "Cb-Deadline-Ms",
    "Cb-Epoch",
    "Cb-Cursor",
    "Cb-After",
    "traceparent",
];

fn header() -> impl Strategy<Value = String> {
    prop_oneof![
        ".{0,200}",
        "[0-9]{1,21}",
        "[0-9]{1,21}\\.[0-9]{1,21}(\\.[0-9]{1,21})?",
        "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    ]
}

/// JSON whose fields are called as those of the verbs.
fn json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        ".{0,20}".prop_map(Value::from),
    ];
    let name = prop::sample::select(vec![
        "kernel", "name", "replicas", "msg_id", "session", "place", "cursor", "term", "number",
        "since", "offset", "to", "user", "role", "id", "after", "owner",
    ]);
    leaf.prop_recursive(3, 24, 6, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((name.clone(), inner), 0..6).prop_map(|fields| {
                fields.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
            }),
        ]
    })
}

fn comes_back<T: Serialize + DeserializeOwned>(body: &Value) {
    let Ok(read) = serde_json::from_value::<T>(body.clone()) else { return };
    let written = serde_json::to_value(&read).unwrap();
    let again = serde_json::from_value::<T>(written.clone()).unwrap();
    assert_eq!(serde_json::to_value(&again).unwrap(), written);
}

proptest! {
    #[test]
    fn an_envelope_is_understood_as_far_as_it_can_be(values in vec(header(), HEADERS.len())) {
        let get = |name: &str| {
            let index = HEADERS.iter().position(|it| *it == name)?;
            Some(values[index].as_str())
        };
        let (envelope, malformed) = Envelope::from_headers(get);
        prop_assert!(malformed.len() <= HEADERS.len());
        let written = envelope.to_headers();
        let (again, malformed) = Envelope::from_headers(|name| {
            written.iter().find(|(it, _)| *it == name).map(|(_, value)| value.as_str())
        });
        prop_assert_eq!((again, malformed), (envelope, Vec::new()));
    }

    #[test]
    fn bodies_of_verbs_are_refused_or_come_back(body in json()) {
        comes_back::<kernel::GetOutputs>(&body);
        comes_back::<kernel::AskFate>(&body);
        comes_back::<kernel::Seen>(&body);
        comes_back::<history::Rewind>(&body);
        comes_back::<history::KeepState>(&body);
        comes_back::<control::StartKernel>(&body);
        comes_back::<control::FindKernel>(&body);
        comes_back::<control::ListKernels>(&body);
        comes_back::<users::AddUser>(&body);
        comes_back::<users::ListUsers>(&body);
    }
}
