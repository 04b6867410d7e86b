//! Subjects and patterns: text and value agree, and patterns mean what NATS takes them to mean.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use callboard_protocol::{
    ActorKind, ClusterId, GroupId, ReplicaId, Subject, SubjectPattern,
    kernel::{OutputCursor, OutputPlace},
};
use proptest::prelude::*;

/// Boxed: unboxed, the strategies built from it do not fit a test thread's stack.
fn token() -> BoxedStrategy<String> {
    // A small alphabet and NATS's own words make equal and confusable tokens likely.
    prop_oneof![
        "[ab]{1,2}",
        "[A-Za-z0-9_-]{1,64}",
        Just("evt".to_owned()),
        Just("raft".to_owned()),
        Just("kernel".to_owned()),
        Just("cb".to_owned()),
    ]
    .boxed()
}

fn kind() -> impl Strategy<Value = ActorKind> {
    prop_oneof![
        Just(ActorKind::Kernel),
        Just(ActorKind::Replica),
        Just(ActorKind::Node),
        Just(ActorKind::Control)
    ]
}

fn cluster() -> impl Strategy<Value = ClusterId> {
    token().prop_map(|text| ClusterId::new(text).unwrap())
}

fn group() -> impl Strategy<Value = GroupId> {
    token().prop_map(|text| GroupId::new(text).unwrap())
}

fn replica() -> impl Strategy<Value = ReplicaId> {
    prop_oneof![0..3_u64, any::<u64>()].prop_map(ReplicaId)
}

fn subject() -> impl Strategy<Value = Subject> {
    prop_oneof![
        (cluster(), kind(), token(), token())
            .prop_map(|(c, k, id, verb)| Subject::actor(&c, k, id, &verb)),
        (cluster(), kind(), token(), token())
            .prop_map(|(c, k, id, event)| Subject::event(&c, k, id, &event)),
        (cluster(), group(), replica(), token())
            .prop_map(|(c, g, r, rpc)| Subject::raft(&c, &g, r, &rpc)),
    ]
}

fn pattern() -> impl Strategy<Value = SubjectPattern> {
    prop_oneof![
        subject().prop_map(SubjectPattern::Exact),
        (cluster(), kind(), token()).prop_map(|(cluster, kind, id)| SubjectPattern::Verbs {
            cluster,
            kind,
            id
        }),
        (cluster(), kind(), token()).prop_map(|(cluster, kind, id)| SubjectPattern::EventsOf {
            cluster,
            kind,
            id
        }),
        (cluster(), kind())
            .prop_map(|(cluster, kind)| SubjectPattern::EventsOfKind { cluster, kind }),
        (cluster(), kind(), token()).prop_map(|(cluster, kind, event)| {
            SubjectPattern::EventOfKind { cluster, kind, event }
        }),
        cluster().prop_map(|cluster| SubjectPattern::AllEvents { cluster }),
        (cluster(), group(), replica()).prop_map(|(cluster, group, replica)| {
            SubjectPattern::RaftMember { cluster, group, replica }
        }),
    ]
}

/// Patterns that could match the subject, each one that differs in one part included.
fn related(subject: &Subject) -> Vec<SubjectPattern> {
    let mut patterns = vec![SubjectPattern::Exact(subject.clone())];
    match subject.clone() {
        Subject::Actor { cluster, kind, id, .. } => {
            patterns.push(SubjectPattern::EventsOf {
                cluster: cluster.clone(),
                kind,
                id: id.clone(),
            });
            patterns.push(SubjectPattern::Verbs { cluster, kind, id });
        }
        Subject::Event { cluster, kind, id, event } => {
            patterns.push(SubjectPattern::Verbs { cluster: cluster.clone(), kind, id: id.clone() });
            patterns.push(SubjectPattern::EventsOf { cluster: cluster.clone(), kind, id });
            patterns.push(SubjectPattern::EventsOfKind { cluster: cluster.clone(), kind });
            patterns.push(SubjectPattern::EventOfKind { cluster: cluster.clone(), kind, event });
            patterns.push(SubjectPattern::AllEvents { cluster });
        }
        Subject::Raft { cluster, group, replica, .. } => {
            patterns.push(SubjectPattern::AllEvents { cluster: cluster.clone() });
            patterns.push(SubjectPattern::RaftMember { cluster, group, replica });
        }
    }
    patterns
}

/// NATS's rule: `*` stands for one token, a last `>` for one or more.
fn nats_matches(pattern: &str, subject: &str) -> bool {
    let subject: Vec<&str> = subject.split('.').collect();
    let pattern: Vec<&str> = pattern.split('.').collect();
    for (index, part) in pattern.iter().enumerate() {
        match (*part, subject.get(index)) {
            (">", Some(_)) => return true,
            ("*", Some(_)) => {}
            (part, Some(token)) if part == *token => {}
            _ => return false,
        }
    }
    subject.len() == pattern.len()
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_subject_survives_its_text(subject in subject()) {
        prop_assert_eq!(subject.to_string().parse::<Subject>().unwrap(), subject);
    }

    #[test]
    fn a_text_that_parses_is_the_subjects_own_text(text in "(cb\\.v1\\.)?[a-b.*> ]{0,12}(\\.evt|\\.raft|\\.node)?[a-b0-9.*>]{0,12}") {
        if let Ok(subject) = text.parse::<Subject>() {
            prop_assert_eq!(subject.to_string(), text);
        }
    }

    #[test]
    fn patterns_match_as_nats_matches_them(subject in subject(), pattern in pattern()) {
        for pattern in related(&subject).into_iter().chain([pattern]) {
            prop_assert_eq!(
                pattern.matches(&subject),
                nats_matches(&pattern.to_string(), &subject.to_string()),
                "{} on {}", pattern, subject
            );
        }
    }

    #[test]
    fn cursors_survive_their_text(term: u64, number: u64, cell: u64) {
        let cursor = OutputCursor { term: callboard_protocol::Term(term), number };
        prop_assert_eq!(cursor.to_string().parse::<OutputCursor>().unwrap(), cursor);
        let place = OutputPlace { cursor, cell: callboard_protocol::Seq(cell) };
        prop_assert_eq!(place.to_string().parse::<OutputPlace>().unwrap(), place);
    }
}

#[test]
fn a_bad_cursor_is_refused_with_an_example() {
    for text in ["", "3", "3.", ".3", "a.b", "1.2.3", "-1.2", "1.99999999999999999999"] {
        let error = text.parse::<OutputCursor>().unwrap_err().to_string();
        assert!(error.contains("TERM.NUMBER such as 3.17"), "{text}: {error}");
    }
    for text in ["1.2", "1.2.x", "1.2.3.4", ""] {
        assert!(text.parse::<OutputPlace>().is_err(), "{text}");
    }
}

#[test]
fn a_foreign_subject_is_refused_with_a_reason() {
    for text in [
        "",
        "cb.v2.c.node.a.b",
        "cb.v1.c.node.a",
        "cb.v1.c.gnu.a.b",
        "cb.v1.c.raft.g.x.vote",
        "cb.v1.c.node.*.b",
    ] {
        let error = text.parse::<Subject>().unwrap_err().to_string();
        assert!(error.contains("is not a Callboard subject: "), "{error}");
    }
}
