//! Files that are traces, and files that are not.

use std::io::Write as _;

use tempfile::NamedTempFile;

use super::*;

const LIMITS: TraceLimits = TraceLimits { gpus_max: 8, skip_bad: false, horizon_min: None };

fn file(text: &str) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(text.as_bytes()).unwrap();
    file
}

fn task(submit_min: u64, duration_min: u64, gpus: u32) -> Task {
    Task { submit_ms: submit_min * MINUTE_MS, duration_ms: duration_min * MINUTE_MS, gpus }
}

#[test]
fn sessions_open_in_order_and_their_tasks_are_found_wherever_their_rows_are() {
    let file = file(
        "gpus,session,submit_min,duration_min\n4,7,30,5\n1,3,10,2\n4,7,20,5\n1,3,15,1\n1,3,16,1\n",
    );
    let trace = Trace::open(file.path(), LIMITS).unwrap();
    assert_eq!(trace.tasks, 5);
    let order: Vec<_> = trace.sessions.iter().map(|it| (it.session, it.gpus)).collect();
    assert_eq!(order, [(3, 1), (7, 4)]);
    assert_eq!(
        trace.tasks_of(&trace.sessions[0]).unwrap(),
        [task(10, 2, 1), task(15, 1, 1), task(16, 1, 1)]
    );
    assert_eq!(trace.tasks_of(&trace.sessions[1]).unwrap(), [task(20, 5, 4), task(30, 5, 4)]);
}

#[test]
fn the_horizon_cuts_durations_and_leaves_out_what_comes_after() {
    let file = file("session,gpus,submit_min,duration_min\n1,1,10,100\n1,1,200,5\n");
    let limits = TraceLimits { horizon_min: Some(60), ..LIMITS };
    let trace = Trace::open(file.path(), limits).unwrap();
    assert_eq!(trace.tasks_of(&trace.sessions[0]).unwrap(), [task(10, 50, 1)]);
    let trace = Trace::open(file.path(), LIMITS).unwrap();
    assert_eq!(trace.horizon_ms, 24 * 60 * MINUTE_MS, "the end of the day");
}

#[test]
fn every_bad_row_is_named_by_its_line_and_can_be_left_out() {
    let file = file(
        "session,gpus,submit_min,duration_min\n1,1,10,5\n1,0,11,5\n1,one,12,5\n1,1,13\n1,16,14,1\n2,1,15,-3\n3,1,16,1\n",
    );
    let error = Trace::open(file.path(), LIMITS).unwrap_err().to_string();
    for part in [
        "5 bad rows",
        "line 3: gpus is 0",
        "line 4: gpus is 'one'",
        "line 5: not as many fields",
        "line 6: 16 GPUs, and a node has 8",
        "line 7: duration_min is '-3'",
        "--skip-bad",
    ] {
        assert!(error.contains(part), "'{part}' is not in: {error}");
    }
    let trace = Trace::open(file.path(), TraceLimits { skip_bad: true, ..LIMITS }).unwrap();
    assert_eq!((trace.tasks, trace.skipped), (2, 5));
    assert_eq!(trace.tasks_of(&trace.sessions[0]).unwrap(), [task(10, 5, 1)]);
    assert_eq!(trace.tasks_of(&trace.sessions[1]).unwrap(), [task(16, 1, 1)]);
}

#[test]
fn the_lines_of_a_thousand_bad_rows_are_all_there() {
    let rows: String = (0..1_000).map(|_| "1,x,1,1\n").collect();
    let file = file(&format!("session,gpus,submit_min,duration_min\n{rows}"));
    let error = Trace::open(file.path(), LIMITS).unwrap_err().to_string();
    assert!(error.contains("1000 bad rows") && error.contains(" 1001"), "{error}");
}

#[test]
fn what_is_no_trace_is_said_to_be_none() {
    let says = |text: &str| Trace::open(file(text).path(), LIMITS).unwrap_err().to_string();
    assert!(says("").contains("no column 'session'"), "{}", says(""));
    let no_gpus = says("session,submit_min,duration_min\n1,1,1\n");
    assert!(no_gpus.contains("no column 'gpus'"), "{no_gpus}");
    let empty = says("session,gpus,submit_min,duration_min\n");
    assert!(empty.contains("no task"), "{empty}");
    let missing = Trace::open("/nonexistent.csv".as_ref(), LIMITS).unwrap_err().to_string();
    assert!(missing.contains("cannot read /nonexistent.csv"), "{missing}");
}
