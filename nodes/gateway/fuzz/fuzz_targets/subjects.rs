//! Subjects: what is one is the same after it is written again, and a pattern finds it.
#![no_main]

use callboard_protocol::{Subject, SubjectPattern};

libfuzzer_sys::fuzz_target!(|text: &str| {
    let Ok(subject) = text.parse::<Subject>() else { return };
    assert_eq!(subject.to_string().parse(), Ok(subject.clone()));
    assert!(SubjectPattern::Exact(subject.clone()).matches(&subject));
});
