//! Back to earlier states, and on from them in a kernel of its own.

use std::time::Duration;

use callboard_client::{ExecuteEvent, ExecuteOptions, KernelClient};
use callboard_protocol::{
    Fault,
    history::{KeepState, Rewind, RewindPlan},
};

use super::cluster::{Cluster, DEADLINE, executor, value};

async fn rewind(client: &KernelClient, to: &str) -> Result<RewindPlan, Fault> {
    let (id, to) = (uuid::Uuid::now_v7().to_string(), to.to_owned());
    client.rewind(&Rewind { id, to, position: None, plan_only: false }).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewind_gives_the_session_back_as_it_was_and_outlives_the_executor() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "import numpy as np; big = np.arange(100_000); words = ['a']").await;
    value(&client, "big[0] = 7; words.append('b'); alias = words").await;
    let kept = KeepState { name: "both".to_owned(), drop: false };
    client.keep_state(&kept).await.unwrap();
    value(&client, "del big, words").await;
    let plan = rewind(&client, "1").await.unwrap();
    assert_eq!((plan.cell.0, plan.execution_count), (1, 2));
    assert_eq!(plan.restored, ["big", "words"]);
    assert_eq!(plan.removed, ["alias"]);
    assert_eq!(value(&client, "int(big[0]), words, 'alias' in dir()").await, "(0, ['a'], False)");
    assert_eq!(client.show().await.unwrap().last_loss, None, "nothing was lost");
    let at_work = executor(&client).await;
    cluster.kill_node(at_work).await;
    let plan = rewind(&client, "both").await.unwrap();
    assert_eq!(plan.redone.iter().map(|it| it.cell.0).collect::<Vec<_>>(), [2]);
    assert_eq!(value(&client, "int(big[0]), words, alias is words").await, "(7, ['a', 'b'], True)");
    let history = client.history().await.unwrap();
    assert_eq!(history.steps.len(), 7);
    assert_eq!(
        history.steps[0].cell.first_line,
        "import numpy as np; big = np.arange(100_000); words = ['a']"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rewind_that_cannot_be_done_gets_a_sentence_and_changes_nothing() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "x = 1").await;
    let fault = rewind(&client, "9").await.unwrap_err();
    assert!(fault.message.contains("no cell 9 yet"), "{fault}");
    let fault = rewind(&client, "nosuch").await.unwrap_err();
    assert!(fault.message.contains("no checkpoint 'nosuch'"), "{fault}");
    let position = client.history().await.unwrap().position;
    let stale =
        Rewind { id: "s".into(), to: "0".into(), position: Some(position + 1), plan_only: false };
    let fault = client.rewind(&stale).await.unwrap_err();
    assert!(fault.message.contains("has moved on"), "{fault}");
    let timeout = Some(DEADLINE);
    let options = ExecuteOptions { timeout, ..ExecuteOptions::default() };
    let mut cell = client.execute("import time; time.sleep(600)", options);
    while !matches!(cell.next().await, Some(Ok(ExecuteEvent::Accepted(_)))) {}
    let fault = rewind(&client, "0").await.unwrap_err();
    assert!(fault.message.contains("cell 2 is running or waiting"), "{fault}");
    loop {
        client.interrupt().await.unwrap();
        // It is dropped where the cell is not open to interrupts yet: so it is sent again.
        match tokio::time::timeout(Duration::from_secs(1), cell.next()).await {
            Ok(Some(Ok(ExecuteEvent::Ended(_)))) => break,
            Ok(None | Some(Err(_))) => panic!("the interrupted cell did not end"),
            Ok(Some(Ok(_))) | Err(_) => {}
        }
    }
    assert_eq!(value(&client, "x").await, "1");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_branch_begins_with_an_earlier_state_and_the_two_go_apart() {
    let mut cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "import numpy as np; big = np.arange(100_000); words = ['a']").await;
    value(&client, "big[0] = 7; words.append('b')").await;
    let first = cluster.branch("1").await;
    let gone = cluster.branch("9").await;
    assert_eq!(value(&first, "int(big[0]), words").await, "(0, ['a'])");
    value(&first, "big[0] = 5").await;
    assert_eq!(value(&client, "int(big[0]), words").await, "(7, ['a', 'b'])");
    assert_eq!(value(&first, "int(big[0])").await, "5");
    let waits = loop {
        let status = gone.show().await;
        match status.ok().and_then(|status| status.waits_for) {
            Some(waits) if waits.contains("no cell 9 yet") => break waits,
            _ => tokio::time::sleep(Duration::from_millis(50)).await,
        }
    };
    assert!(waits.starts_with("it waits for the state 9 of kernel"), "{waits}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cell_rewinds_its_own_session_and_hears_why_it_cannot() {
    let cluster = Cluster::start().await;
    let client = cluster.client();
    value(&client, "x = 1").await;
    value(&client, "x = 2; y = 3").await;
    let text = value(&client, "%callboard rewind 1").await;
    assert!(text.contains("the state after cell 1; undone: 2, and this cell"), "{text}");
    assert_eq!(value(&client, "x, 'y' in dir()").await, "(1, False)");
    let text = value(&client, "%callboard rewind 99").await;
    assert!(text.contains("not rewound: there is no cell 99 yet"), "{text}");
    assert_eq!(value(&client, "x").await, "1");
    let text = value(&client, "%callboard rewind").await;
    assert!(text.contains("Name one state"), "{text}");
}
