//! Users and access tokens on a real cluster: they outlive nodes and restarts, and whoever listens
//! hears of every change.
//!
//! Reproduce: `make setup && cargo test -p callboard-cli --test users`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test fails by panicking"
)]
#![allow(dead_code, reason = "the support of all cluster tests; this one needs a part")]

mod support;

use callboard_client::{Client, EventStream};
use callboard_protocol::{
    Fault, FaultCode, OwnerId,
    audit::Audit,
    control::StartKernel,
    users::{AccessToken, TokenEntry, UserList, UserRole, UsersChanged},
};
use callboard_transport::Credentials;
use serde_json::Value;
use support::{Cluster, wait_until};

fn data(cluster: &Cluster, args: &[&str]) -> Value {
    let args = [args, &["--output", "json"]].concat();
    let ran = cluster.run(&args);
    assert_eq!(ran.code, 0, "{args:?}: {ran:?}");
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{args:?}: {error}: {ran:?}"))
}

fn refuses(cluster: &Cluster, args: &[&str], code: i32, word: &str) {
    let ran = cluster.run(args);
    assert_eq!((ran.code, ran.stdout.as_str()), (code, ""), "{args:?}: {ran:?}");
    assert!(ran.stderr.contains(word), "{args:?}: {ran:?}");
}

/// The users as a gateway knows them.
fn users(cluster: &Cluster) -> UserList {
    serde_json::from_value(data(cluster, &["user", "list"])).unwrap()
}

fn admits(cluster: &Cluster, user: &str, token: &AccessToken, now_ms: u64) -> bool {
    let users = users(cluster).users;
    let entry = users.iter().find(|entry| entry.user.as_str() == user);
    let token_entry = entry.and_then(|entry| entry.tokens.get(&token.id));
    token_entry.is_some_and(|entry: &TokenEntry| entry.admits(token, now_ms))
}

#[test]
fn users_and_tokens_are_administered_and_outlive_nodes_and_restarts() {
    let mut cluster = Cluster::start(&[]);
    cluster.run(&["user", "add", "ada"]).prints("ada (user)\n");
    cluster.run(&["user", "add", "ada", "--role", "admin"]).prints("ada (admin)\n");
    let bob = data(&cluster, &["user", "add", "bob", "--role", "viewer"]);
    assert_eq!((bob["user"].as_str(), bob["role"].as_str()), (Some("bob"), Some("viewer")));

    let made = cluster.run(&["user", "token", "ada", "--label", "laptop", "--expires-in", "30d"]);
    assert_eq!(made.code, 0, "{made:?}");
    assert!(made.stderr.contains("only time that the token is shown"), "{made:?}");
    let token: AccessToken = made.stdout.trim_end().parse().unwrap();
    assert_eq!(made.stdout, format!("{token}\n"), "the token alone is on stdout");
    assert!(!made.stderr.contains(&token.secret), "{made:?}");
    let second = data(&cluster, &["user", "token", "ada"]);
    let second: AccessToken = second["token"].as_str().unwrap().parse().unwrap();

    let listed = cluster.run(&["user", "list"]).stdout;
    assert!(listed.contains("laptop") && listed.contains(token.id.as_str()), "{listed}");
    assert!(!listed.contains(&token.secret), "{listed}");
    let before = users(&cluster);
    assert_eq!((before.users.len(), before.version), (2, 5), "{before:?}");
    let entry = &before.users[0].tokens[&token.id];
    let expires_ms = entry.expires_ms.unwrap();
    assert_eq!(expires_ms - entry.created_ms, 30 * 86_400_000);
    assert!(admits(&cluster, "ada", &token, expires_ms - 1));
    assert!(!admits(&cluster, "ada", &token, expires_ms));
    assert!(admits(&cluster, "ada", &second, u64::MAX));

    refuses(&cluster, &["user", "token", "eve"], 3, "callboard user add eve");
    refuses(&cluster, &["user", "remove", "eve"], 3, "callboard user list");
    refuses(&cluster, &["user", "revoke", "000000000000"], 3, "callboard user list");
    refuses(&cluster, &["user", "token", "ada", "--label", &"x".repeat(101)], 2, "shorten it");

    // A lost leader, then everything: what was said stays.
    for node in ["node-1", "node-2"] {
        let pids = cluster.node_pids();
        cluster.kill_node(node);
        assert_eq!(users(&cluster), before);
        wait_until("the node is back", || {
            let now = cluster.node_pids();
            now.len() == 3 && now.iter().any(|it| it.0 == node && !pids.contains(it))
        });
    }
    cluster.kill_everything();
    cluster.up(&[]);
    assert_eq!(users(&cluster), before);

    let revoked = data(&cluster, &["user", "revoke", token.id.as_str()]);
    assert_eq!(revoked["revoked"], true);
    assert!(!admits(&cluster, "ada", &token, 0) && admits(&cluster, "ada", &second, 0));
    let removed = cluster.run(&["user", "remove", "bob"]);
    removed.prints("bob\n");
    assert!(removed.stderr.contains("0 tokens"), "{removed:?}");
    assert_eq!(users(&cluster).version, before.version + 2);
}

/// The gateway's connection, as the user `ada`.
async fn gateway(cluster: &Cluster) -> Client {
    let credentials = Credentials::load(&cluster.data().join("credentials/gateway.json")).unwrap();
    let client = Client::connect(&credentials).await.unwrap();
    client.for_owner(OwnerId::new("ada").unwrap())
}

/// The next audit; the versions of users that are announced before it are added to `versions`.
async fn next_audit(events: &mut EventStream, versions: &mut Vec<u64>) -> Audit {
    loop {
        let next = tokio::time::timeout(std::time::Duration::from_secs(20), events.next()).await;
        let event = next.expect("an audit in time").unwrap();
        match event.event.as_str() {
            "users_changed" => {
                let changed: UsersChanged = serde_json::from_slice(&event.payload).unwrap();
                versions.push(changed.version);
            }
            "audited" => return serde_json::from_slice(&event.payload).unwrap(),
            _ => {}
        }
    }
}

#[test]
fn a_gateway_hears_of_changes_starts_its_users_kernels_and_administers_nobody() {
    let cluster = Cluster::start(&[]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(async {
        let client = gateway(&cluster).await;
        let mut events = client.events().await.unwrap();
        let mut versions = Vec::new();
        let mut told = async |action: &str, by: &str, subject: &str| {
            let audit = next_audit(&mut events, &mut versions).await;
            let said = (audit.action.as_str(), audit.by.as_str(), audit.subject.as_str());
            assert_eq!(said, (action, by, subject), "{audit:?}");
        };
        cluster.run(&["user", "add", "ada"]).prints("ada (user)\n");
        told("user_added", "default", "ada").await;
        cluster.run(&["user", "add", "ada"]).prints("ada (user)\n");
        cluster.run(&["user", "add", "ada", "--role", "viewer"]).prints("ada (viewer)\n");
        told("user_role_changed", "default", "ada").await;
        let token = data(&cluster, &["user", "token", "ada"]);
        told("token_added", "default", "ada").await;
        let token: AccessToken = token["token"].as_str().unwrap().parse().unwrap();
        let seen = client.control().list_users().await.unwrap();
        assert!(seen.users[0].tokens[&token.id].admits(&token, 0));
        let eve = OwnerId::new("eve").unwrap();
        let fault: Fault = client.control().add_user(eve, UserRole::Admin).await.unwrap_err();
        assert_eq!(fault.code, FaultCode::BadRequest, "{fault}");

        let kernel = callboard_protocol::KernelId::generate();
        let request = StartKernel {
            kernel,
            name: Some("plots".to_owned()),
            replicas: 3,
            options: Default::default(),
            origin: None,
            settings: Default::default(),
        };
        client.control().start_kernel(&request).await.unwrap();
        told("kernel_started", "ada", &kernel.to_string()).await;
        refuses(&cluster, &["user", "remove", "ada"], 6, "callboard kernel stop");
        client.control().stop_kernel(kernel).await.unwrap();
        told("kernel_stopped", "ada", &kernel.to_string()).await;
        cluster.run(&["user", "revoke", token.id.as_str()]).prints(&format!("{}\n", token.id));
        told("token_revoked", "default", "ada").await;
        cluster.run(&["user", "remove", "ada"]).prints("ada\n");
        told("user_removed", "default", "ada").await;
        // One more, so that what belongs to the last one has come.
        cluster.run(&["user", "add", "bob"]).prints("bob (user)\n");
        told("user_added", "default", "bob").await;
        // Two tasks of the leader tell of them, so that two may come in the other order.
        versions.sort_unstable();
        assert!(versions.starts_with(&[1, 2, 3, 4, 5]), "{versions:?}");
    });
    // What `events` shows of it, for reading.
    let events = cluster.watch();
    cluster.run(&["user", "remove", "bob"]).prints("bob\n");
    events.wait_for(&["audit 20", "Z default user_removed bob: with 0 tokens"]);
}
