//! A front-end sees every cell to its end, each output once, whatever gets lost on the way and however
//! often it goes and comes back.

#![expect(clippy::unwrap_used, clippy::panic, reason = "the helpers of tests are no `#[test]`")]

mod fake;

use std::time::Duration;

use bytes::Bytes;
use callboard_client::{Channels, Delivery};
use callboard_protocol::{
    FaultCode,
    jupyter::{Channel, JupyterMessage},
};
use callboard_transport::SUBSCRIPTION_CAPACITY;
use fake::{Fake, Script};
use serde_json::{Value, json};
use tokio::time::{Instant, timeout};

/// After this long without a message nothing more comes.
const SILENCE: Duration = Duration::from_secs(120);

fn request(msg_type: &str, id: &str, content: &Value) -> JupyterMessage {
    let header = json!({"msg_id": id, "msg_type": msg_type, "session": "front-end"});
    JupyterMessage {
        channel: Channel::Shell,
        header: header.to_string().into(),
        parent_header: Bytes::from_static(b"{}"),
        metadata: Bytes::from_static(b"{}"),
        content: content.to_string().into(),
        buffers: Vec::new(),
    }
}

fn cell(id: &str) -> JupyterMessage {
    request("execute_request", id, &json!({"code": "a b c"}))
}

/// Channels whose session has begun, so that they hear what comes from now on.
async fn open(fake: &Fake) -> Channels {
    let mut channels = fake.client.kernel(fake.kernel).channels("front-end");
    assert!(timeout(SILENCE, channels.next()).await.is_err(), "nothing was asked");
    channels
}

/// A message in short: `parent:text`, or its type and what matters of it.
fn short(delivery: &Delivery) -> String {
    let message = &delivery.message;
    let content: Value = message.parse_content().unwrap();
    let header = message.parse_header().unwrap();
    let what = match header.msg_type.as_str() {
        "stream" => content["text"].as_str().unwrap().to_owned(),
        "status" => content["execution_state"].as_str().unwrap().to_owned(),
        "error" => format!("error {}", content["evalue"].as_str().unwrap()),
        "execute_reply" => format!("reply {}", content["status"].as_str().unwrap()),
        other => other.to_owned(),
    };
    format!("{}:{what}", message.parent_msg_id().unwrap_or_default())
}

/// Everything that comes until nothing does.
async fn all(channels: &mut Channels) -> Vec<String> {
    let mut seen = Vec::new();
    while let Ok(delivery) = timeout(SILENCE, channels.next()).await {
        seen.push(short(&delivery.unwrap()));
    }
    seen
}

/// What a cell of this id says, all of it once.
fn whole(id: &str) -> Vec<String> {
    ["busy", "a", "b", "c", "reply ok", "idle"].map(|what| format!("{id}:{what}")).to_vec()
}

fn script() -> Script {
    Script { replies: true, ..Script::default() }
}

#[tokio::test(start_paused = true)]
async fn a_cell_is_shown_from_busy_to_idle_without_reading_the_log() {
    let fake = Fake::start(script()).await;
    let mut channels = open(&fake).await;
    channels.send(cell("m1")).unwrap();
    assert_eq!(all(&mut channels).await, whole("m1"));
    let script = fake.script();
    assert_eq!((script.arrived["m1"], script.fetches), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn a_lost_answer_has_the_request_sent_again_and_run_once() {
    let fake = Fake::start(Script { lost_answers: 2, ..script() }).await;
    let mut channels = open(&fake).await;
    channels.send(cell("m1")).unwrap();
    channels.send(cell("m2")).unwrap();
    assert_eq!(all(&mut channels).await, [whole("m1"), whole("m2")].concat());
    assert_eq!(fake.script().runs, 2);
}

#[tokio::test(start_paused = true)]
async fn lost_and_doubled_events_make_no_difference() {
    for lost in [vec![1], vec![2, 3], vec![5], vec![6], vec![1, 2, 3, 4, 5, 6]] {
        for (doubled, silent_end) in [(false, false), (true, false), (false, true)] {
            // The first cell has six outputs; those of the second are lost.
            let unannounced = lost.iter().map(|number| number + 6).collect();
            let fake = Fake::start(Script { unannounced, doubled, silent_end, ..script() }).await;
            let mut channels = open(&fake).await;
            channels.send(cell("m1")).unwrap();
            channels.send(cell("m2")).unwrap();
            let seen = all(&mut channels).await;
            let expected = [whole("m1"), whole("m2")].concat();
            assert_eq!(seen, expected, "lost {lost:?}, {doubled}, {silent_end}");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn a_cell_whose_executor_is_lost_ends_with_one_error_one_reply_and_one_idle() {
    for doubled in [false, true] {
        let loss = Some("node-1 lost its power".to_owned());
        let fake = Fake::start(Script { loss, doubled, ..script() }).await;
        let mut channels = open(&fake).await;
        channels.send(cell("m1")).unwrap();
        let seen = all(&mut channels).await;
        let end = ["error node-1 lost its power", "reply error", "idle"];
        let end = end.map(|what| format!("m1:{what}"));
        assert_eq!(seen, [&whole("m1")[..4], &end].concat(), "doubled: {doubled}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_comes_back_in_a_cell_sees_it_cleared_and_whole() {
    for seen_of_it in 1..6 {
        let fake = Fake::start(script()).await;
        let mut channels = open(&fake).await;
        channels.send(cell("m1")).unwrap();
        assert_eq!(all(&mut channels).await, whole("m1"));
        channels.send(cell("m2")).unwrap();
        let mut last = None;
        for _ in 0..seen_of_it {
            last = channels.next().await.unwrap().place.or(last);
        }
        channels.note_seen(last.unwrap()).await.unwrap();
        drop(channels);
        let mut again = fake.client.kernel(fake.kernel).channels("front-end");
        let seen = all(&mut again).await;
        // A cell whose end was not seen comes again; its beginning is said by the clearing.
        let replay = [vec!["m2:busy".to_owned(), "m2:clear_output".to_owned()], whole("m2")];
        assert_eq!(seen, replay.concat(), "{seen_of_it} messages were seen");
        assert_eq!(fake.script().runs, 2);
    }
}

#[tokio::test(start_paused = true)]
async fn a_session_that_has_seen_everything_sees_nothing_again() {
    let fake = Fake::start(script()).await;
    let mut channels = open(&fake).await;
    channels.send(cell("m1")).unwrap();
    let mut last = None;
    while let Ok(delivery) = timeout(SILENCE, channels.next()).await {
        last = delivery.unwrap().place.or(last);
    }
    channels.note_seen(last.unwrap()).await.unwrap();
    let mut again = fake.client.kernel(fake.kernel).channels("front-end");
    assert_eq!(all(&mut again).await, Vec::<String>::new());
}

#[tokio::test(start_paused = true)]
async fn what_was_seen_of_a_cell_and_not_noted_is_cleared_before_it_comes_again() {
    // Either nothing was noted at all, or the end of the cell before.
    for noted in [false, true] {
        let fake = Fake::start(script()).await;
        let mut channels = open(&fake).await;
        if noted {
            channels.send(cell("m1")).unwrap();
            let mut last = None;
            while let Ok(delivery) = timeout(SILENCE, channels.next()).await {
                last = delivery.unwrap().place.or(last);
            }
            channels.note_seen(last.unwrap()).await.unwrap();
        }
        channels.send(cell("m2")).unwrap();
        for _ in 0..3 {
            channels.next().await.unwrap();
        }
        drop(channels);
        let mut again = fake.client.kernel(fake.kernel).channels("front-end");
        let replay = [vec!["m2:busy".to_owned(), "m2:clear_output".to_owned()], whole("m2")];
        assert_eq!(all(&mut again).await, replay.concat(), "noted: {noted}");
        // What it sends from now on it cannot have seen.
        again.send(cell("m3")).unwrap();
        assert_eq!(all(&mut again).await, whole("m3"));
    }
}

#[tokio::test(start_paused = true)]
async fn where_a_session_was_is_asked_until_it_is_answered() {
    let fake = Fake::start(Script { lost_seen: 12, ..script() }).await;
    let mut channels = fake.client.kernel(fake.kernel).channels("front-end");
    channels.send(cell("m1")).unwrap();
    let place = channels.next();
    assert!(timeout(Duration::from_secs(4), place).await.is_err(), "it has not begun");
    let seen = all(&mut channels).await;
    assert!(seen.iter().all(|it| it.starts_with("m1:")), "{seen:?}");
    assert_eq!(fake.script().lost_seen, 0);
}

#[tokio::test(start_paused = true)]
async fn what_a_slow_front_end_had_no_room_for_is_read_from_the_log_at_once() {
    let fake = Fake::start(script()).await;
    let mut channels = open(&fake).await;
    // More than wait in a subscription, and the end of the cell with them.
    let texts = vec!["a"; SUBSCRIPTION_CAPACITY + 1_000];
    let code = json!({"code": texts.join(" ")});
    channels.send(request("execute_request", "m1", &code)).unwrap();
    let mut seen = vec![short(&channels.next().await.unwrap())];
    // It does not read until all has been said.
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = Instant::now();
    while seen.last().is_none_or(|last| last != "m1:idle") {
        seen.push(short(&channels.next().await.unwrap()));
    }
    assert!(began.elapsed() < Duration::from_secs(1), "it waited to be reminded");
    let texts = texts.iter().map(|text| format!("m1:{text}")).collect();
    let parts = [vec!["m1:busy".to_owned()], texts, vec!["m1:reply ok".into(), "m1:idle".into()]];
    let expected = parts.concat();
    let differing = seen.iter().zip(&expected).position(|(seen, expected)| seen != expected);
    assert!(seen == expected, "{} messages, the first that differs is {differing:?}", seen.len());
}

#[tokio::test(start_paused = true)]
async fn what_is_said_during_a_pause_is_read_from_the_log() {
    let fake = Fake::start(script()).await;
    let mut channels = open(&fake).await;
    channels.send(cell("m1")).unwrap();
    assert_eq!(all(&mut channels).await, whole("m1"));
    channels.pause();
    let mut other = fake.client.kernel(fake.kernel).channels("other");
    assert_eq!(all(&mut other).await, Vec::<String>::new());
    other.send(cell("m2")).unwrap();
    assert_eq!(all(&mut other).await, whole("m2"));
    let seen = all(&mut channels).await;
    assert_eq!(seen, whole("m2"));
}

#[tokio::test(start_paused = true)]
async fn a_followed_cell_is_shown_in_the_name_of_whoever_follows() {
    let fake = Fake::start(script()).await;
    let mut channels = open(&fake).await;
    channels.send(cell("m1")).unwrap();
    assert_eq!(all(&mut channels).await, whole("m1"));
    let mut later = fake.client.kernel(fake.kernel).channels("later");
    for (wish, of) in [("w1", "m1"), ("w2", "unheard-of")] {
        later.send(request("callboard_outputs_request", wish, &json!({ "msg_id": of }))).unwrap();
    }
    let mut seen = all(&mut later).await;
    let unknown = seen.iter().position(|it| it == "w2:callboard_outputs_reply").unwrap();
    seen.drain(unknown..unknown + 2);
    let expected = ["busy", "busy", "a", "b", "c", "callboard_outputs_reply", "idle"];
    assert_eq!(seen, expected.map(|what| format!("w1:{what}")));
    assert_eq!(fake.script().runs, 1);
}

#[tokio::test(start_paused = true)]
async fn more_requests_than_may_wait_are_refused_and_the_others_stay() {
    let fake = Fake::start(Script { hangs: true, ..script() }).await;
    let mut channels = open(&fake).await;
    for number in 0..1_001 {
        channels.send(cell(&format!("m{number}"))).unwrap();
    }
    let mut seen = Vec::new();
    while let Ok(delivery) = timeout(Duration::from_secs(5), channels.next()).await {
        seen.push(short(&delivery.unwrap()));
    }
    let refused: Vec<&String> = seen.iter().filter(|it| it.contains("reply error")).collect();
    assert_eq!(refused, ["m1000:reply error"]);
    assert_eq!(fake.script().runs, 1_000);
}

#[tokio::test(start_paused = true)]
async fn nothing_more_should_be_taken_while_much_is_to_be_read() {
    let fake = Fake::start(script()).await;
    let mut channels = open(&fake).await;
    for number in 0..1_000 {
        channels.refuse(&cell(&format!("m{number}")), "no");
    }
    assert!(!channels.has_room());
    while timeout(SILENCE, channels.next()).await.is_ok() {}
    assert!(channels.has_room());
}

#[tokio::test(start_paused = true)]
async fn a_kernel_that_is_stopped_is_dead_and_its_channels_end() {
    let fake = Fake::start(script()).await;
    let mut channels = open(&fake).await;
    fake.announce("stopped", &json!({})).await;
    assert_eq!(short(&channels.next().await.unwrap()), ":dead");
    assert_eq!(channels.next().await.unwrap_err().code, FaultCode::NotFound);
}
