//! Golden bytes of version 1: today's code writes exactly these and reads them back.
//!
//! A difference means that two versions of Callboard in one cluster would misread each other. Add a
//! field only with `#[serde(default)]`, and then a new file beside the old one.
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]

use std::{collections::BTreeMap, fmt::Debug, path::PathBuf};

use bytes::Bytes;
use callboard_protocol::{
    Answer, Certainty, DiskId, Envelope, Epoch, Fault, FaultCode, Incarnation, KernelId, MessageId,
    NodeId, OwnerId, ReplicaId, Seq, Term,
    audit::Audit,
    control::*,
    environment::{Environment, Kernelspec},
    history::*,
    kernel::*,
    node::{Asleep, Beat, Kill, NodeExited, PythonStock},
    storage::*,
    users::*,
};
use serde::{Serialize, de::DeserializeOwned};
use uuid::Uuid;

fn golden_path(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Reads the golden file; `CALLBOARD_BLESS=1` writes it first, for a file that is new.
fn golden(name: &str, written_now: &str) -> String {
    let path = golden_path(name);
    if std::env::var_os("CALLBOARD_BLESS").is_some() && !path.exists() {
        std::fs::write(&path, written_now).unwrap();
    }
    std::fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("{}: {error}; bless it first", path.display()))
}

fn holds<T: Serialize + DeserializeOwned + PartialEq + Debug>(name: &str, value: &T) {
    let written = serde_json::to_string_pretty(value).unwrap() + "\n";
    let expected = golden(&format!("v1_{name}.json"), &written);
    assert_eq!(written, expected, "{name} is written in another way than in version 1");
    assert_eq!(&serde_json::from_str::<T>(&expected).unwrap(), value, "{name} is misread");
    let packed = rmp_serde::to_vec_named(value).unwrap();
    assert_eq!(&rmp_serde::from_slice::<T>(&packed).unwrap(), value, "{name} in MessagePack");
}

fn uuid(number: u128) -> Uuid {
    Uuid::from_u128(0x0197_0000_0000_7000_8000_0000_0000_0000 + number)
}

fn node(number: u32) -> NodeId {
    NodeId::new(format!("node-{number}")).unwrap()
}

fn place() -> OutputPlace {
    OutputPlace { cursor: OutputCursor { term: Term(3), number: 17 }, cell: Seq(5) }
}

fn envelope() -> Envelope {
    Envelope {
        owner: OwnerId::new("ada").unwrap(),
        message_id: MessageId(uuid(1)),
        cause: Some(MessageId(uuid(2))),
        deadline_ms: Some(1500),
        epoch: Epoch(7),
        cursor: Some(place()),
        after: None,
        traceparent: Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned()),
    }
}

fn cell_end(outcome: CellOutcome) -> CellEnd {
    CellEnd {
        seq: Seq(5),
        msg_id: "msg-1".to_owned(),
        term: Term(3),
        outcome,
        last_output: Some(place().cursor),
    }
}

#[test]
fn envelope_headers_keep_their_first_version() {
    let text = |envelope: &Envelope| {
        envelope
            .to_headers()
            .iter()
            .map(|(name, value)| format!("{name}: {value}\n"))
            .collect::<String>()
    };
    let envelope = envelope();
    let expected = golden("v1_envelope_headers.txt", &text(&envelope));
    assert_eq!(text(&envelope), expected);
    assert!(expected.len() <= callboard_protocol::envelope::HEADERS_LENGTH_MAX);
    let headers: BTreeMap<&str, &str> =
        expected.lines().map(|line| line.split_once(": ").unwrap()).collect();
    let (read, malformed) = Envelope::from_headers(|name| headers.get(name).copied());
    assert_eq!((read, malformed), (envelope, vec![]));
}

#[test]
fn absent_and_malformed_headers_are_defaults() {
    let (read, malformed) = Envelope::from_headers(|_| None);
    assert_eq!(malformed, Vec::<&str>::new());
    assert_eq!(Envelope { message_id: read.message_id, ..Envelope::default() }, read);
    let (read, malformed) = Envelope::from_headers(|_| Some("no good value"));
    assert_eq!(malformed.len(), 8, "{malformed:?}");
    assert_eq!(Envelope { message_id: read.message_id, ..Envelope::default() }, read);
}

#[test]
fn the_largest_envelope_fits_its_allowance() {
    let largest = Envelope {
        owner: OwnerId::new("o".repeat(64)).unwrap(),
        deadline_ms: Some(u32::MAX),
        epoch: Epoch(u64::MAX),
        cursor: Some(OutputPlace {
            cursor: OutputCursor { term: Term(u64::MAX), number: u64::MAX },
            cell: Seq(u64::MAX),
        }),
        traceparent: Some("t".repeat(128)),
        ..envelope()
    };
    let headers = largest.to_headers();
    assert_eq!(headers.len(), 7);
    let length: usize = headers.iter().map(|(name, value)| name.len() + value.len() + 4).sum();
    assert!(length + 16 <= callboard_protocol::envelope::HEADERS_LENGTH_MAX, "{length}");
}

#[test]
fn kernel_messages_keep_their_first_version() {
    holds("level", &[Level::Received, Level::Durable]);
    holds("accepted_pending", &Accepted { seq: Seq(5), state: CellState::Pending });
    let completed = CellState::Ended(cell_end(CellOutcome::Completed));
    holds("accepted_ended", &Accepted { seq: Seq(5), state: completed });
    let cause = "executor lost on node-2: killed by signal 9".to_owned();
    holds("cell_end_interrupted", &cell_end(CellOutcome::Interrupted { cause }));
    holds("get_outputs", &GetOutputs { since: place().cursor, offset: 0 });
    holds(
        "outputs",
        &Outputs {
            outputs: vec![Output { place: place(), message: Bytes::from_static(b"\x00\x01frame") }],
            gap: true,
            more: false,
            ended: Vec::new(),
            part: None,
        },
    );
    let status = KernelStatus {
        term: Some(Term(3)),
        accepted: Seq(6),
        ended: Seq(5),
        queue_depth: 1,
        replicas: vec![ReplicaStatus {
            replica: ReplicaId(1),
            node: node(1),
            role: ReplicaRole::Executor,
            lag_entries: Some(0),
        }],
        raft_leader: None,
        losses_survivable: 1,
        names: vec!["x".to_owned()],
        refused: vec![Refused { name: "s".to_owned(), reason: "a socket".to_owned() }],
        state_bytes: 4096,
        last_loss: None,
        waits_for: None,
        phase: KernelPhase::Starting,
        files: Vec::new(),
        limits: KernelLimits::default(),
        unenforced: Vec::new(),
        not_replicated: false,
    };
    holds("kernel_status", &status);
    let not_replicated = true;
    holds("kernel_status_not_replicated", &KernelStatus { not_replicated, ..status.clone() });
    holds("kernel_status_phase", &KernelStatus { phase: KernelPhase::Parked, ..status });
    let (from, attempt) = (ReplicaId(1), 2);
    holds("sleep_offer", &SleepOffer { from, attempt, term: 4, index: 19, spec_version: 1 });
    let refusal = Some("a cell waits or runs".to_owned());
    holds("sleep_answer", &[SleepAnswer { refusal }, SleepAnswer { refusal: None }]);
    let phases = [
        KernelPhase::Running,
        KernelPhase::Idle,
        KernelPhase::Parked,
        KernelPhase::Starting,
        KernelPhase::Hibernating,
    ];
    holds("kernel_phases", &phases);
}

#[test]
fn control_messages_keep_their_first_version() {
    let kernel = KernelId(uuid(3));
    let (options, settings) = (KernelOptions::default(), KernelSettings::default());
    let name = Some("demo".to_owned());
    let start = StartKernel { kernel, name, replicas: 3, options, origin: None, settings };
    holds("start_kernel", &start);
    let at = "@7".to_owned();
    let origins = [Origin::Kernel { kernel, at }, Origin::Upload];
    let begins = |origin| StartKernel { origin: Some(origin), ..start.clone() };
    holds("start_kernel_with_origin", &origins.map(begins));
    let (from, version) = (ReplicaId(2), Some(9));
    holds("recover_kernel", &RecoverKernel { kernel, from, version, plan_only: true });
    let options = KernelOptions { standby: Some(Standby::Hot), parked: true };
    holds("start_kernel_options", &StartKernel { options, ..start });
    holds("stop_kernel", &StopKernel { kernel });
    holds("find_kernel", &FindKernel { text: "demo".to_owned() });
    let replica = |number, standing| {
        let spec = ReplicaSpec { node: node(number), disk: DiskId(uuid(number.into())), standing };
        (ReplicaId(number.into()), spec)
    };
    let spec = KernelSpec {
        kernel,
        owner: OwnerId::default(),
        name: None,
        replicas_wanted: 3,
        replicas: BTreeMap::from([
            replica(1, Standing::Founder),
            replica(2, Standing::Joiner),
            replica(3, Standing::Leaver),
        ]),
        replica_next: ReplicaId(4),
        version: 9,
        generation: 0,
        recovery: None,
        origin: None,
        settings: KernelSettings::default(),
        needs: None,
        labels: BTreeMap::new(),
        options: KernelOptions::default(),
    };
    let list = KernelList { kernels: vec![spec.clone()], ..KernelList::default() };
    holds("kernel_list", &list);
    let hint = Some("there are more".to_owned());
    let version = Some(7);
    holds("kernel_list_versioned", &KernelList { version, ..list.clone() });
    let unchanged = KernelList { version, unchanged: true, ..KernelList::default() };
    holds("kernel_list_unchanged", &unchanged);
    holds("kernel_list_page", &KernelList { next: Some(kernel), hint, ..list });
    holds("list_kernels", &ListKernels { after: Some(kernel), known: None });
    holds("list_kernels_known", &ListKernels { after: None, known: version });
    let options = KernelOptions { standby: Some(Standby::Thin), parked: false };
    holds("kernel_spec_options", &KernelSpec { options, ..spec });
}

#[test]
fn what_is_said_of_nodes_keeps_its_first_version() {
    let status = NodeStatus {
        node: node(1),
        disk: DiskId(uuid(8)),
        health: NodeHealth::Suspected,
        silent_ms: 1200,
        pid: 4711,
        host: "host-a".to_owned(),
        incarnation: 2,
        replicas: 3,
        running_cells: 1,
        python_problem: None,
        disk_level: None,
        environment: None,
        unenforced: Vec::new(),
        asleep: 0,
        python_stock: PythonStock::default(),
    };
    holds("node_status_asleep", &NodeStatus { asleep: 3, ..status.clone() });
    let (outage, epoch) = (Some("2 of 3 nodes are silent".to_owned()), Epoch(7));
    holds(
        "node_list",
        &NodeList { nodes: vec![status], outage, epoch, leader: node(1), held: Vec::new() },
    );
}

#[test]
fn settings_and_needs_of_kernels_keep_their_first_version() {
    let kernel = KernelId(uuid(3));
    let settings = KernelSettings {
        directory: Some("/data".to_owned()),
        limits: KernelLimits { memory_max_mib: Some(512), ..KernelLimits::default() },
        kernelspec: None,
    };
    let start = StartKernel {
        kernel,
        name: None,
        replicas: 3,
        options: KernelOptions::default(),
        origin: None,
        settings: settings.clone(),
    };
    holds("start_kernel_settings", &start);
    let needs = Environment {
        id: String::new(),
        python: "3.11.7".to_owned(),
        implementation: "CPython".to_owned(),
        platform: "linux-x86_64".to_owned(),
        distributions: [("numpy".to_owned(), "2.4.6".to_owned())].into(),
        kernelspecs: BTreeMap::new(),
    };
    holds("note_needs", &NoteNeeds { kernel, needs: needs.clone() });
    let spec = KernelSpec {
        kernel,
        owner: OwnerId::default(),
        name: None,
        replicas_wanted: 1,
        replicas: BTreeMap::new(),
        replica_next: ReplicaId(1),
        version: 2,
        options: KernelOptions::default(),
        generation: 0,
        recovery: None,
        origin: None,
        settings,
        needs: Some(needs),
        labels: BTreeMap::new(),
    };
    holds("kernel_spec_needs", &spec);
    let reason = "every node holds a member already".to_owned();
    holds("held_repair", &HeldRepair { kernel, reason });
}

#[test]
fn messages_about_kernelspecs_keep_their_first_version() {
    let kernelspec = Some("bash".to_owned());
    let settings = KernelSettings { kernelspec, ..KernelSettings::default() };
    let start = StartKernel {
        kernel: KernelId(uuid(3)),
        name: None,
        replicas: 3,
        options: KernelOptions::default(),
        origin: None,
        settings,
    };
    holds("start_kernel_kernelspec", &start);
    let spec = Kernelspec { display_name: "Bash".to_owned(), language: "bash".to_owned() };
    let environment = Environment {
        id: "0123456789abcdef".to_owned(),
        kernelspecs: [("bash".to_owned(), spec.clone())].into(),
        ..Environment::default()
    };
    holds("environment_kernelspecs", &environment);
    let status = KernelspecStatus { spec, nodes: vec![node(1), node(2)] };
    holds("kernelspec_list", &KernelspecList { kernelspecs: [("bash".to_owned(), status)].into() });
}

#[test]
fn history_messages_keep_their_first_version() {
    let shown = |cell, outcome| StepShown {
        position: cell,
        cell: CellShown { cell: Seq(cell), number: Some(cell), first_line: "x = 1".to_owned() },
        outcome,
        is_undone: cell == 2,
        changed_bytes: 5,
        state_bytes: 9,
        checkpoints: vec!["clean".to_owned()],
    };
    let steps = vec![
        shown(1, StepOutcome::Completed),
        shown(2, StepOutcome::Interrupted),
        shown(3, StepOutcome::Rewound { checkpoint: Some("clean".to_owned()) }),
    ];
    let named = NamedState { name: "clean".to_owned(), cell: Seq(1), state_bytes: 9 };
    let cell = steps[0].cell.clone();
    let checkpoints = vec![named];
    holds("history", &KernelHistory { position: 3, steps, checkpoints, reaches_start: true });
    holds("keep_state", &KeepState { name: "clean".to_owned(), drop: true });
    let (id, to) = ("wish".to_owned(), "In[1]".to_owned());
    holds("rewind", &Rewind { id, to, position: Some(3), plan_only: true });
    let plan = RewindPlan {
        position: 3,
        cell: Seq(1),
        checkpoint: None,
        execution_count: 2,
        changed: vec!["x".to_owned()],
        removed: vec!["y".to_owned()],
        restored: vec!["z".to_owned()],
        undone: vec![cell.clone()],
        redone: vec![cell],
    };
    holds("rewind_plan", &plan);
    let end = SeedEnd { refused: Vec::new(), execution_count: 2, from: "a file".to_owned() };
    let groups = Bytes::from_static(b"\x90");
    holds("seed_page", &SeedPage { skip: 1, groups, end: Some(end) });
    let hash = "ab".repeat(32);
    holds("get_chunk", &GetChunk { hash: hash.clone(), offset: 3 });
    let bytes = Bytes::from_static(b"chunk");
    holds("chunk_piece", &ChunkPiece { length: 9, bytes: bytes.clone() });
    holds("put_chunk", &PutChunk { hash, length: 9, offset: 3, bytes });
    holds("chunk_progress", &ChunkProgress { held: 9, is_durable: true });
    holds("seed_progress", &SeedProgress { held: 1, has_begun: true });
    holds("get_manifest", &GetManifest { at: Some("@3".to_owned()), skip: 2 });
    let refused = vec![Refused { name: "s".to_owned(), reason: "a socket".to_owned() }];
    let manifest = Manifest {
        at: "@3".to_owned(),
        cell: Seq(1),
        groups: Bytes::from_static(b"\x90"),
        count: 0,
        more: false,
        refused,
        execution_count: 2,
    };
    holds("manifest", &manifest);
}

#[test]
fn node_messages_keep_their_first_version() {
    let (kernel, replica) = (KernelId(uuid(3)), ReplicaId(2));
    holds(
        "kill",
        &[Kill::Node, Kill::Python { kernel, replica }, Kill::Replica { kernel, replica }],
    );
    let how = "killed by signal 9".to_owned();
    holds("node_exited", &NodeExited { node: node(1), incarnation: Some(Incarnation(2)), how });
    let beat = Beat {
        node: node(1),
        disk: DiskId(uuid(8)),
        incarnation: Incarnation(2),
        number: 40,
        pid: 4711,
        host: "host-a".to_owned(),
        replicas: 3,
        running_cells: 1,
        epoch: Epoch(7),
        suspects: vec![node(2)],
        python_problem: Some("no ipykernel".to_owned()),
        environment: None,
        unenforced: Vec::new(),
        asleep: Asleep::default(),
        python_stock: PythonStock::default(),
        disk_level: None,
        desired_format: 0,
    };
    holds("beat", &beat);
    let asleep = Asleep { count: 2, digest: 0x1234_5678_9abc_def0 };
    holds("beat_asleep", &Beat { asleep, ..beat.clone() });
    let python_stock = PythonStock { ready: 3, target: 4, zygote_pid: Some(4712), preloaded: 2 };
    holds("beat_with_stock", &Beat { python_stock, ..beat.clone() });
    holds("beat_with_desired_format", &Beat { desired_format: 2, ..beat });
}

#[test]
fn messages_about_users_keep_their_first_version() {
    let (user, id) = (OwnerId::new("ada").unwrap(), TokenId::new("k3x9q0a7b2mz").unwrap());
    let token = AccessToken::new(id.clone(), &[0xfb; SECRET_BYTES]);
    assert_eq!(golden("v1_access_token.txt", &format!("{token}\n")), format!("{token}\n"));
    holds("user_roles", &[UserRole::Viewer, UserRole::User, UserRole::Admin]);
    let label = Some("laptop".to_owned());
    let (sha256, created_ms) = (token.sha256_hex(), 1_790_000_000_000);
    let entry = TokenEntry { sha256, label, created_ms, expires_ms: Some(1_792_592_000_000) };
    assert!(entry.admits(&token, created_ms));
    holds("add_user", &AddUser { user: user.clone(), role: UserRole::Admin });
    holds("remove_user", &RemoveUser { user: user.clone() });
    holds("add_token", &AddToken { user: user.clone(), id: id.clone(), entry: entry.clone() });
    holds("revoke_token", &RevokeToken { id: id.clone() });
    holds("list_users", &ListUsers { after: Some(user.clone()) });
    let forever = TokenEntry { label: None, expires_ms: None, ..entry.clone() };
    let tokens = [(id, entry), (TokenId::new("000000000000").unwrap(), forever)].into();
    let ada = UserEntry { user: user.clone(), role: UserRole::User, tokens };
    let list = UserList { users: vec![ada], version: 4, next: None };
    holds("user_list", &list);
    holds("user_list_page", &UserList { next: Some(user), ..list });
    holds("users_changed", &UsersChanged { version: 5 });
    let (by, action, subject) = ("ada".into(), "user_added".into(), "bob".into());
    holds("audit", &Audit { at_ms: created_ms, by, action, subject, detail: "as viewer".into() });
}

#[test]
fn storage_messages_keep_their_first_version() {
    holds("disk_beat", &DiskBeat { used_percent: 96, is_high: true });
    holds("purge", &Purge { kernel: KernelId(uuid(3)) });
    holds("purged", &Purged { chunks: 2, bytes: 3000, left: 1 });
    let chunks = vec!["00ff".to_owned()];
    holds("named_among", &NamedAmong { owner: OwnerId::default(), chunks });
    holds("named", &Named { positions: vec![0, 7] });
    holds(
        "node_storage",
        &NodeStorage {
            node: node(1),
            disk_used_bytes: 100,
            disk_free_bytes: 50,
            disk_high_water_percent: 95,
            disk_is_high: false,
            reserve_bytes: 10,
            owner_quota_bytes: 0,
            owners: vec![OwnerStorage { owner: OwnerId::default(), chunks: 2, bytes: 3000 }],
            moved: Moved { stored_bytes: 1, sent_bytes: 2, received_bytes: 3, ..Moved::default() },
            collector_waits: Some("waiting for 1 member".to_owned()),
            damaged: vec![DamagedChunk {
                owner: OwnerId::default(),
                chunk: "00ff".to_owned(),
                kernels: vec![uuid(3).to_string()],
                is_repaired: true,
            }],
        },
    );
}

#[test]
fn answers_keep_their_first_version() {
    holds("answer_ok", &Answer::Ok(Seq(5)));
    let fault = Fault::maybe_executed(FaultCode::TimedOut, "no answer within 5 s");
    assert_eq!(fault.certainty, Certainty::MaybeExecuted);
    holds("answer_err", &Answer::<Seq>::Err(fault));
    use FaultCode as F;
    holds(
        "fault_codes",
        &[
            F::NotFound,
            F::BadRequest,
            F::TooLarge,
            F::Exhausted,
            F::Conflict,
            F::Unavailable,
            F::TimedOut,
            F::Stale,
            F::Internal,
        ],
    );
}
