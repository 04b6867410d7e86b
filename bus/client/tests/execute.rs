//! A cell reaches its end, with every output once, whatever gets lost on the way.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests are no `#[test]`")]

mod fake;

use std::time::Duration;

use callboard_client::{ExecuteOptions, Execution};
use callboard_protocol::{Certainty, Fault, FaultCode, kernel::CellOutcome};
use fake::{Fake, Script, Seen, follow};

fn cell(fake: &Fake, id: &str) -> Execution {
    let options = ExecuteOptions { msg_id: Some(id.to_owned()), ..ExecuteOptions::default() };
    fake.client.kernel(fake.kernel).execute("a b c", options)
}

#[tokio::test(start_paused = true)]
async fn a_cell_streams_its_outputs_and_ends_without_reading_the_log() {
    let fake = Fake::start(Script::default()).await;
    let seen = follow(cell(&fake, "m1")).await;
    assert_eq!(seen.texts, ["a", "b", "c"]);
    assert!(seen.end.is_some() && seen.notices.is_empty(), "{seen:?}");
    let script = fake.script();
    assert_eq!((script.arrived["m1"], script.fetches), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_lost_acceptance_makes_the_same_id_be_sent_again_and_run_once() {
    let fake = Fake::start(Script { lost_answers: 2, silent_end: true, ..Script::default() }).await;
    let seen = follow(cell(&fake, "m1")).await;
    assert_eq!(seen.texts, ["a", "b", "c"]);
    assert!(seen.end.is_some(), "{seen:?}");
    let script = fake.script();
    assert_eq!((script.arrived["m1"], script.runs), (3, 1));
}

#[tokio::test(start_paused = true)]
async fn a_lost_end_is_learnt_by_asking_again() {
    let fake = Fake::start(Script { silent_end: true, ..Script::default() }).await;
    let seen = follow(cell(&fake, "m1")).await;
    assert!(seen.end.is_some(), "{seen:?}");
    assert_eq!(fake.script().runs, 1);
}

#[tokio::test(start_paused = true)]
async fn lost_outputs_are_fetched_and_shown_in_order() {
    for lost in [vec![1], vec![2], vec![4], vec![1, 2], vec![2, 3, 4], vec![1, 2, 3, 4]] {
        let unannounced = lost.iter().copied().collect();
        let fake = Fake::start(Script { unannounced, ..Script::default() }).await;
        let seen = follow(cell(&fake, "m1")).await;
        assert_eq!(seen.texts, ["a", "b", "c"], "lost: {lost:?}");
        assert!(seen.end.is_some() && fake.script().fetches > 0, "lost: {lost:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn doubled_events_are_shown_once() {
    let fake = Fake::start(Script { doubled: true, ..Script::default() }).await;
    let seen = follow(cell(&fake, "m1")).await;
    assert_eq!(seen.texts, ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_second_cell_of_the_same_client_needs_no_log_either() {
    let fake = Fake::start(Script::default()).await;
    let kernel = fake.client.kernel(fake.kernel);
    let _ = follow(kernel.execute("a", ExecuteOptions::default())).await;
    let seen = follow(kernel.execute("b c", ExecuteOptions::default())).await;
    assert_eq!((seen.texts, fake.script().fetches), (vec!["b".to_owned(), "c".to_owned()], 0));
}

#[tokio::test(start_paused = true)]
async fn an_id_that_ended_before_shows_its_outputs_again_and_does_not_run() {
    let fake = Fake::start(Script::default()).await;
    let _ = follow(cell(&fake, "m1")).await;
    let seen = follow(cell(&fake, "m1")).await;
    assert_eq!(seen.texts, ["a", "b", "c"]);
    assert!(seen.end.is_some() && fake.script().runs == 1, "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_broker_outage_at_the_start_is_told_and_waited_out() {
    let fake = Fake::start(Script::default()).await;
    fake.net.set_broker_outage(true);
    let mut execution = cell(&fake, "m1");
    let mut seen = Seen::default();
    seen.take(execution.next().await.unwrap());
    assert!(seen.notices[0].contains("broker"), "{seen:?}");
    fake.net.set_broker_outage(false);
    assert_eq!(follow(execution).await.texts, ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_broker_outage_in_the_middle_loses_nothing_that_is_shown() {
    let fake = Fake::start(Script { hangs: true, ..Script::default() }).await;
    let mut execution = cell(&fake, "m1");
    let mut seen = Seen::default();
    while seen.texts.len() < 2 {
        seen.take(execution.next().await.unwrap());
    }
    fake.net.set_broker_outage(true);
    while seen.notices.is_empty() {
        seen.take(execution.next().await.unwrap());
    }
    fake.net.set_broker_outage(false);
    let mut other = follow(cell_with_end(&fake)).await;
    while let Ok(Some(item)) = tokio::time::timeout(Duration::from_secs(5), execution.next()).await
    {
        seen.take(item);
    }
    assert_eq!(seen.texts, ["a", "b", "c"]);
    assert_eq!(other.end.take().map(|end| end.msg_id), Some("m2".to_owned()));
}

fn cell_with_end(fake: &Fake) -> Execution {
    fake.script().hangs = false;
    cell(fake, "m2")
}

#[tokio::test(start_paused = true)]
async fn outputs_that_are_no_longer_kept_are_named_as_missing() {
    let unannounced = [1, 2, 3, 4].into();
    let fake = Fake::start(Script { unannounced, expired_to: 2, ..Script::default() }).await;
    let seen = follow(cell(&fake, "m1")).await;
    assert_eq!(seen.texts, ["b", "c"]);
    assert!(seen.end.is_some() && seen.notices.iter().any(|n| n.contains("no longer kept")));
}

#[tokio::test(start_paused = true)]
async fn a_log_that_lost_every_output_still_lets_the_cell_end() {
    let unannounced = [1, 2, 3, 4].into();
    let fake = Fake::start(Script { unannounced, expired_to: 9, ..Script::default() }).await;
    let seen = follow(cell(&fake, "m1")).await;
    assert!(seen.texts.is_empty() && seen.end.is_some(), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn a_cell_whose_end_was_said_and_lost_ends_as_the_log_has_it() {
    let script = Script { unannounced: [4].into(), loses_executor: true, ..Script::default() };
    let fake = Fake::start(script).await;
    let seen = follow(cell(&fake, "m1")).await;
    assert_eq!(seen.texts, ["a", "b"]);
    let outcome = seen.end.unwrap().outcome;
    assert!(matches!(outcome, CellOutcome::Interrupted { .. }), "{outcome:?}");
}

#[tokio::test(start_paused = true)]
async fn a_final_refusal_is_not_asked_again() {
    let refusal = Some(Fault::new(FaultCode::Conflict, "the id was used for another request"));
    let fake = Fake::start(Script { refusal, ..Script::default() }).await;
    let seen = follow(cell(&fake, "m1")).await;
    assert_eq!(seen.fault.unwrap().code, FaultCode::Conflict);
    assert_eq!(fake.script().arrived["m1"], 1);
}

#[tokio::test(start_paused = true)]
async fn a_passing_refusal_is_waited_out() {
    let refusal = Some(Fault::new(FaultCode::Unavailable, "no leader yet"));
    let fake = Fake::start(Script { refusal, ..Script::default() }).await;
    let mut execution = cell(&fake, "m1");
    let mut seen = Seen::default();
    seen.take(execution.next().await.unwrap());
    assert!(seen.notices[0].contains("no leader yet"), "{seen:?}");
    fake.script().refusal = None;
    assert_eq!(follow(execution).await.texts, ["a", "b", "c"]);
}

#[tokio::test(start_paused = true)]
async fn a_cell_that_never_ends_times_out_and_says_how_to_ask_again() {
    let fake = Fake::start(Script { hangs: true, ..Script::default() }).await;
    let timeout = Some(Duration::from_secs(30));
    let options = ExecuteOptions { timeout, msg_id: Some("m1".to_owned()), ..Default::default() };
    let seen = follow(fake.client.kernel(fake.kernel).execute("a", options)).await;
    let fault = seen.fault.unwrap();
    assert_eq!((fault.code, fault.certainty), (FaultCode::TimedOut, Certainty::MaybeExecuted));
    assert!(fault.message.contains("m1"), "{fault}");
    assert_eq!(fake.script().runs, 1);
}

#[tokio::test(start_paused = true)]
async fn without_resending_a_request_is_sent_once() {
    let fake = Fake::start(Script { hangs: true, lost_answers: 1, ..Script::default() }).await;
    let timeout = Some(Duration::from_secs(30));
    let options = ExecuteOptions {
        timeout,
        resend: None,
        msg_id: Some("m1".to_owned()),
        ..Default::default()
    };
    let _ = follow(fake.client.kernel(fake.kernel).execute("a", options)).await;
    assert_eq!(fake.script().arrived["m1"], 1);
}
