//! What can be gone back to, and what a rewind leaves as it is.

use bytes::Bytes;
use callboard_protocol::{
    Incarnation, ReplicaId, Term,
    history::StepOutcome,
    jupyter::JupyterMessage,
    kernel::{CellEnd, CellOutcome, Level},
};
use proptest::prelude::*;

use super::*;
use crate::terms::{Applied, Entry, Part};

fn request(code: &str) -> Bytes {
    JupyterMessage {
        channel: callboard_protocol::jupyter::Channel::Shell,
        header: Bytes::from_static(br#"{"msg_id": "m", "msg_type": "execute_request"}"#),
        parent_header: Bytes::from_static(b"{}"),
        metadata: Bytes::from_static(b"{}"),
        content: Bytes::from(format!("{{\"code\": {code:?}}}")),
        buffers: Vec::new(),
    }
    .encode()
}

fn group(name: &str, parts: Vec<Part>) -> (String, StateGroup) {
    let (names, kind) = (vec![name.to_owned()], "variables".to_owned());
    (name.to_owned(), StateGroup { names, kind, parts })
}

fn inline(name: &str, text: &str) -> (String, StateGroup) {
    group(name, vec![Part::Inline(Bytes::from(text.to_owned()))])
}

/// A kernel that runs cells one after the other.
#[derive(Debug, Default)]
struct Kernel {
    log: KernelLog,
    sent: u64,
}

impl Kernel {
    fn open(&mut self) -> Term {
        if let Some(open) = self.log.open_term() {
            return open.term;
        }
        let term = self.log.last_term().next();
        let base = self.log.completed();
        self.log.apply(Entry::Takeover {
            term,
            replica: ReplicaId(1),
            incarnation: Incarnation(1),
            base,
        });
        term
    }

    fn accept(&mut self, code: &str) -> (Term, Seq) {
        let term = self.open();
        self.sent += 1;
        let applied = self.log.apply(Entry::Accept {
            msg_id: format!("cell-{}", self.sent),
            hash: [1; 32],
            level: Level::Durable,
            request: request(code),
            horizon: None,
            grant: Some(term),
        });
        let Applied::Accepted { seq, .. } = applied else { panic!("{applied:?}") };
        (term, seq)
    }

    fn cell(&mut self, code: &str, upsert: Vec<(String, StateGroup)>, removed: &[&str]) -> Seq {
        let (term, seq) = self.accept(code);
        let delta = StateDelta {
            upsert,
            removed: removed.iter().map(|id| (*id).to_owned()).collect(),
            refused: Vec::new(),
            execution_count: self.log.execution_count() + 1,
        };
        let applied = self.log.apply(Entry::Complete { term, seq, outputs: Vec::new(), delta });
        assert!(matches!(applied, Applied::Completed(CellEnd { .. })), "{applied:?}");
        seq
    }

    fn set(&mut self, name: &str, value: &str) -> Seq {
        self.cell(&format!("{name} = {value}"), vec![inline(name, value)], &[])
    }

    fn rewind(&mut self, to: &str) -> Result<Seq, String> {
        let to = self.log.find_state(to).map_err(|refusal| refusal.to_string())?;
        let at = self.log.position();
        match self.log.apply(Entry::Rewind { id: format!("wish-{at}"), at, to }) {
            Applied::Rewound { to, .. } => Ok(to),
            Applied::Declined(refusal) => Err(refusal.to_string()),
            other => panic!("{other:?}"),
        }
    }

    fn keep(&mut self, name: &str) -> Applied {
        let at = self.log.position();
        self.log.apply(Entry::Checkpoint { name: name.to_owned(), at })
    }

    fn state(&self) -> String {
        let text = |(name, group): (&String, &StateGroup)| match &group.parts[0] {
            Part::Inline(bytes) => format!("{name}={}", String::from_utf8_lossy(bytes)),
            Part::Chunk { .. } | Part::Chunked { .. } => format!("{name}=chunk"),
        };
        self.log.manifest().iter().map(text).collect::<Vec<_>>().join(" ")
    }
}

fn three_cells() -> Kernel {
    let mut kernel = Kernel::default();
    kernel.set("x", "1");
    kernel.set("y", "2");
    kernel.cell("x = 3; del y", vec![inline("x", "3")], &["y"]);
    kernel
}

#[test]
fn a_restart_ends_what_waits_leaves_the_files_and_can_be_undone() {
    let mut kernel = three_cells();
    let mut file = inline("notes", "text");
    file.1.kind = "file".to_owned();
    kernel.cell("open('notes', 'w')", vec![file], &[]);
    let (_, running) = kernel.accept("loop()");
    let (_, waiting) = kernel.accept("y");
    let restart = Entry::Restart { id: "wish".to_owned() };
    let Applied::Restarted { interrupted } = kernel.log.apply(restart.clone()) else { panic!() };
    let ended: Vec<Seq> = interrupted.iter().map(|end| end.seq).collect();
    assert_eq!(ended, [running, waiting]);
    assert!(interrupted.iter().all(|end| matches!(end.outcome, CellOutcome::Interrupted { .. })));
    assert_eq!((kernel.state().as_str(), kernel.log.open_term()), ("notes=text", None));
    assert!(kernel.log.pending().is_empty());
    assert_eq!(kernel.log.apply(restart), Applied::Ignored, "a wish is granted once");
    assert_eq!(kernel.set("z", "9"), Seq(7));
    assert_eq!(kernel.rewind("4"), Ok(Seq(4)));
    assert_eq!(kernel.state(), "notes=text x=3");
    let undone: Vec<bool> = kernel.log.history().steps.iter().map(|step| step.is_undone).collect();
    assert_eq!(undone, [false, false, false, false, true, true, true, true, false]);
}

#[test]
fn a_rewind_brings_back_exactly_what_stood_there_and_can_be_undone() {
    let mut kernel = three_cells();
    assert_eq!(kernel.state(), "x=3");
    assert_eq!(kernel.rewind("2"), Ok(Seq(2)));
    assert_eq!((kernel.state().as_str(), kernel.log.execution_count()), ("x=1 y=2", 3));
    assert_eq!(kernel.rewind("3"), Ok(Seq(3)));
    assert_eq!(kernel.state(), "x=3");
    assert_eq!(kernel.rewind("0"), Ok(Seq(0)));
    assert_eq!((kernel.state().as_str(), kernel.log.execution_count()), ("", 1));
    assert_eq!(kernel.set("z", "9"), Seq(4), "places only grow");
    assert_eq!(kernel.rewind("In[2]"), Ok(Seq(2)));
    assert_eq!(kernel.state(), "x=1 y=2");
    assert_eq!(kernel.rewind("4"), Ok(Seq(4)));
    assert_eq!(kernel.state(), "z=9");
}

#[test]
fn a_rewind_closes_the_term_in_order_and_takes_no_acknowledgement_back() {
    let mut kernel = three_cells();
    let (at, to) = (kernel.log.position(), RewindTo::Position(1));
    let wish = Entry::Rewind { id: "wish".to_owned(), at, to };
    let applied = kernel.log.apply(wish.clone());
    assert_eq!(applied, Applied::Rewound { closed: Some(Term(1)), to: Seq(1) });
    assert_eq!((kernel.log.open_term(), kernel.log.last_loss()), (None, None));
    assert_eq!((kernel.log.accepted(), kernel.log.completed()), (Seq(3), Seq(3)));
    for n in 1..=3 {
        let known = kernel.log.request(&format!("cell-{n}"));
        assert!(known.is_some_and(|(_, _, end)| end.is_some()), "cell {n} is as it was told");
    }
    assert_eq!(kernel.log.apply(wish), Applied::Declined(UndoRefusal::Moved), "said twice");
    assert_eq!(kernel.log.rewound_by("wish"), Some(Seq(1)));
    kernel.open();
    assert_eq!(kernel.log.open_term().map(|open| open.term), Some(Term(2)));
}

#[test]
fn a_rewind_past_a_pending_cell_or_decided_on_an_older_state_is_refused() {
    let mut kernel = three_cells();
    let stale = Entry::Rewind { id: "late".to_owned(), at: 2, to: RewindTo::Position(1) };
    assert_eq!(kernel.log.apply(stale), Applied::Declined(UndoRefusal::Moved));
    kernel.accept("import time; time.sleep(9)");
    let refused = kernel.rewind("1").unwrap_err();
    assert!(refused.contains("cell 4 is running or waiting"), "{refused}");
    assert!(kernel.log.plan_rewind(&RewindTo::Position(1)).is_err());
}

#[test]
fn a_cell_that_is_no_longer_kept_gets_a_sentence_that_says_what_is() {
    let mut kernel = Kernel::default();
    for n in 1..=HISTORY_STEPS_MAX + 10 {
        kernel.set("x", &n.to_string());
    }
    let refused = kernel.rewind("9").unwrap_err();
    assert_eq!(
        refused,
        "the state after cell 9 is no longer kept: cells 10 to 210 can be gone back to (see \
         `callboard kernel log`)"
    );
    assert!(kernel.rewind("0").is_err());
    assert!(kernel.rewind("999").unwrap_err().starts_with("there is no cell 999 yet"));
    assert!(kernel.rewind("In[3]").unwrap_err().starts_with("the state after In[3] is no longer"));
    assert!(kernel.rewind("clean").unwrap_err().starts_with("there is no checkpoint 'clean'"));
    assert_eq!(kernel.rewind("10"), Ok(Seq(10)));
    assert_eq!(kernel.state(), "x=10");
}

#[test]
fn a_named_state_outlives_the_steps_and_keeps_its_chunks() {
    let chunk = |n: u8| Part::Chunk { hash: [n; 32], length: 1_000 };
    let mut kernel = Kernel::default();
    kernel.cell("big", vec![group("big", vec![chunk(1), chunk(2)])], &[]);
    assert_eq!(kernel.keep("clean"), Applied::Kept);
    assert_eq!(kernel.keep("clean"), Applied::Kept, "the same again");
    for n in 0..=HISTORY_STEPS_MAX {
        kernel.cell("big", vec![group("big", vec![chunk(1), chunk(n as u8 + 3)])], &[]);
    }
    assert!(matches!(kernel.keep("clean"), Applied::Declined(UndoRefusal::NameTaken { .. })));
    assert!(kernel.rewind("1").is_err());
    let names =
        |log: &KernelLog, n: u8| log.kept_groups().any(|group| group.parts.contains(&chunk(n)));
    assert!(names(&kernel.log, 2));
    let plan = kernel.log.plan_rewind(&RewindTo::Checkpoint("clean".to_owned())).unwrap();
    assert_eq!((plan.cell, plan.changed.as_slice()), (Seq(1), ["big".to_owned()].as_slice()));
    assert_eq!(kernel.rewind("clean"), Ok(Seq(1)));
    let name = "clean".to_owned();
    assert_eq!(kernel.log.apply(Entry::DropCheckpoint { name }), Applied::Kept);
    kernel.cell("big", Vec::new(), &["big"]);
    assert!(names(&kernel.log, 2), "the last step could still bring it back");
    for _ in 0..HISTORY_STEPS_MAX {
        kernel.set("x", "1");
    }
    assert!(!names(&kernel.log, 2));
}

#[test]
fn steps_that_keep_too_much_are_forgotten_oldest_first() {
    let chunk = |n: u8, length| Part::Chunk { hash: [n; 32], length };
    let third = HISTORY_CHUNK_BYTES_MAX / 3 + 1;
    let mut kernel = Kernel::default();
    for n in 0..4 {
        kernel.cell("big", vec![group("big", vec![chunk(n, third)])], &[]);
    }
    assert_eq!(kernel.log.history().steps.len(), 3, "three states of it do not fit");
    let kept = kernel.log.history().steps[0].cell.cell;
    assert_eq!(kernel.rewind("1").is_err(), kept > Seq(1));
    let mut kernel = Kernel::default();
    let large = "v".repeat(HISTORY_INLINE_BYTES_MAX as usize / 2);
    for n in 0..4 {
        kernel.set("x", &format!("{n}{large}"));
    }
    assert_eq!(kernel.log.history().steps.len(), 2);
}

#[test]
fn names_that_could_mean_a_cell_and_too_many_are_refused() {
    let mut kernel = three_cells();
    for bad in ["", "7", "a b", "In[3]", "@4"] {
        let refused = kernel.keep(bad);
        assert!(matches!(refused, Applied::Declined(UndoRefusal::BadName { .. })), "{bad}");
    }
    for n in 0..CHECKPOINTS_MAX {
        assert_eq!(kernel.keep(&format!("c{n}")), Applied::Kept);
    }
    let Applied::Declined(refusal) = kernel.keep("more") else { panic!("kept") };
    assert!(refusal.to_string().contains("c0, c1"), "{refusal}");
    assert!(refusal.to_string().contains("--drop"), "{refusal}");
}

#[test]
fn the_table_shows_cells_numbers_first_lines_and_what_was_undone() {
    let mut kernel = three_cells();
    kernel.keep("end");
    let (term, seq) = kernel.accept("\n  # train\nfit()");
    kernel.log.apply(Entry::Abandon { term, cause: "killed".to_owned() });
    kernel.rewind("1").unwrap();
    let shown = kernel.log.history();
    assert!(shown.reaches_start);
    let rows: Vec<_> = shown
        .steps
        .iter()
        .map(|it| (it.cell.cell.0, it.cell.number, it.cell.first_line.as_str(), it.is_undone))
        .collect();
    let expected = [
        (1, Some(1), "x = 1", false),
        (2, Some(2), "y = 2", true),
        (3, Some(3), "x = 3; del y", true),
        (seq.0, None, "# train", true),
        (1, None, "", false),
    ];
    assert_eq!(rows, expected);
    assert_eq!(shown.steps[2].checkpoints, ["end"]);
    assert_eq!(shown.steps[3].outcome, StepOutcome::Interrupted);
    assert_eq!(shown.steps[4].outcome, StepOutcome::Rewound { checkpoint: None });
    let plan = kernel.log.plan_rewind(&RewindTo::Position(3)).unwrap();
    assert_eq!(plan.restored, Vec::<String>::new());
    assert_eq!(plan.changed, ["x"]);
    let redone: Vec<u64> = plan.redone.iter().map(|it| it.cell.0).collect();
    assert_eq!((redone, plan.undone), (vec![2, 3], Vec::new()));
}

#[test]
fn a_log_from_before_there_was_a_history_still_reads_and_begins_one() {
    let kernel = three_cells();
    let bytes = rmp_serde::to_vec(&kernel.log).unwrap();
    // The history is the last element but one of the array: an older version wrote two fewer.
    let newer = [
        rmp_serde::to_vec(&kernel.log.history).unwrap(),
        rmp_serde::to_vec(&kernel.log.beginning).unwrap(),
    ]
    .concat();
    let mut old = bytes[..bytes.len() - newer.len()].to_vec();
    assert!(old[0] == 0xdc && bytes.ends_with(&newer), "an array of 16 or more");
    let count = u16::from_be_bytes([old[1], old[2]]) - 2;
    old[1..3].copy_from_slice(&count.to_be_bytes());
    let log: KernelLog = rmp_serde::from_slice(&old).unwrap();
    let mut kernel = Kernel { log, sent: 3 };
    kernel.set("x", "4");
    assert!(kernel.rewind("0").unwrap_err().contains("cells 3 to 4"));
    assert!(kernel.rewind("2").is_err());
    assert_eq!(kernel.rewind("3"), Ok(Seq(3)));
    assert_eq!(kernel.state(), "x=3");
}

proptest! {
    /// Whatever cells and rewinds there were: every state that is said to be kept is the one that
    /// was there, also through a snapshot.
    #[test]
    fn every_kept_state_is_the_one_that_was_there(
        moves in proptest::collection::vec((0..4_u8, 0..3_u8, 0..40_u64), 1..60),
    ) {
        let mut kernel = Kernel::default();
        let mut states = vec![kernel.log.moment()];
        for (what, name, number) in moves {
            let name = format!("v{name}");
            match what {
                0 | 1 => drop(kernel.set(&name, &number.to_string())),
                2 => drop(kernel.cell("del", Vec::new(), &[&name])),
                _ => {
                    let (at, to) = (kernel.log.position(), number % (kernel.log.position() + 1));
                    let (id, to) = (format!("{at}"), RewindTo::Position(to));
                    let applied = kernel.log.apply(Entry::Rewind { id, at, to });
                    prop_assert!(matches!(applied, Applied::Rewound { .. }), "{applied:?}");
                }
            }
            states.push(kernel.log.moment());
            let bytes = rmp_serde::to_vec(&kernel.log).unwrap();
            prop_assert_eq!(&rmp_serde::from_slice::<KernelLog>(&bytes).unwrap(), &kernel.log);
        }
        let bytes: u64 = kernel.log.manifest().values().map(group_bytes).sum();
        prop_assert_eq!(kernel.log.history().steps.last().unwrap().state_bytes, bytes);
        for (position, expected) in (0..).zip(&states) {
            let kept = kernel.log.moment_at(&RewindTo::Position(position));
            prop_assert_eq!(&kept.unwrap(), expected);
        }
    }
}
