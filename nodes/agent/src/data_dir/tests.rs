use std::os::unix::fs::PermissionsExt as _;

use callboard_protocol::{GroupId, KernelId, ReplicaId};

use super::*;

fn node(n: u32) -> NodeId {
    NodeId::new(format!("node-{n}")).unwrap()
}

fn machine(name: &str) -> MachineId {
    MachineId(name.to_owned())
}

fn open(root: &Path) -> Result<DataDir, DataDirError> {
    DataDir::open(root, &node(1), &machine("here"), false)
}

#[test]
fn a_fresh_directory_is_private_and_keeps_its_identity() {
    let parent = tempfile::tempdir().unwrap();
    let root = parent.path().join("deep/node-1");
    let disk = open(&root).unwrap().disk();
    assert_eq!(fs::metadata(&root).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(open(&root).unwrap().disk(), disk);
}

#[test]
fn a_directory_in_use_is_refused_and_names_the_holder() {
    let root = tempfile::tempdir().unwrap();
    let first = open(root.path()).unwrap();
    let error = open(root.path()).unwrap_err().to_string();
    assert!(error.contains(&format!("in use by process {}", std::process::id())), "{error}");
    assert!(error.contains("stop that node first"), "{error}");
    drop(first);
    open(root.path()).unwrap();
}

#[test]
fn a_directory_of_another_machine_is_refused_until_adopted() {
    let root = tempfile::tempdir().unwrap();
    let disk = open(root.path()).unwrap().disk();
    let elsewhere = |adopt| DataDir::open(root.path(), &node(1), &machine("there"), adopt);
    let error = elsewhere(false).unwrap_err().to_string();
    assert!(error.contains("made on another machine") && error.contains("--adopt-directory"));
    assert_eq!(elsewhere(true).unwrap().disk(), disk);
    assert_eq!(elsewhere(false).unwrap().disk(), disk, "adopted for good");
    assert!(open(root.path()).is_err());
}

#[test]
fn a_directory_of_another_node_is_refused() {
    let root = tempfile::tempdir().unwrap();
    drop(open(root.path()).unwrap());
    let other = DataDir::open(root.path(), &node(2), &machine("here"), true);
    let error = other.unwrap_err().to_string();
    assert!(error.contains("belongs to node-1, not to node-2"), "{error}");
}

#[test]
fn an_unknown_format_and_a_damaged_identity_are_refused_and_left_alone() {
    let root = tempfile::tempdir().unwrap();
    drop(open(root.path()).unwrap());
    let path = root.path().join("identity.toml");
    for (content, expected) in [
        ("format = 7\nshape = \"new\"\n", "has format 7, this version of Callboard reads format 1"),
        ("format = 1\nnode = \"node-1\"\n", "cannot be used: missing field"),
        ("\u{0}\u{0}", "cannot be used"),
    ] {
        fs::write(&path, content).unwrap();
        let error = open(root.path()).unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), content);
    }
}

#[test]
fn a_log_without_an_identity_is_not_taken_for_a_fresh_directory() {
    let root = tempfile::tempdir().unwrap();
    drop(open(root.path()).unwrap());
    fs::write(root.path().join("wal/00001.log"), b"records").unwrap();
    fs::remove_file(root.path().join("identity.toml")).unwrap();
    let error = open(root.path()).unwrap_err().to_string();
    assert!(error.contains("missing, though there is a log beside it"), "{error}");
}

#[test]
fn every_life_has_a_higher_number_than_all_before() {
    let root = tempfile::tempdir().unwrap();
    for life in 1..=3 {
        assert_eq!(open(root.path()).unwrap().begin_life().unwrap(), Incarnation(life));
    }
    fs::write(root.path().join("incarnation"), "junk").unwrap();
    let error = open(root.path()).unwrap().begin_life().unwrap_err().to_string();
    assert!(error.contains("should hold a number"), "{error}");
}

#[test]
fn members_are_remembered_until_forgotten() {
    let root = tempfile::tempdir().unwrap();
    let (a, b) = (KernelId::generate(), KernelId::generate());
    let (first, later) = (GroupId::of_kernel(a, 0), GroupId::of_kernel(b, 2));
    let dir = open(root.path()).unwrap();
    dir.note_member(&first, ReplicaId(1)).unwrap();
    dir.note_member(&first, ReplicaId(1)).unwrap();
    dir.note_member(&later, ReplicaId(12)).unwrap();
    drop(dir);
    let dir = open(root.path()).unwrap();
    let of_b = ((b, ReplicaId(12)), later.clone());
    let both = [((a, ReplicaId(1)), first.clone()), of_b.clone()].into();
    assert_eq!(dir.noted_members().unwrap(), both);
    dir.forget_member(&first, ReplicaId(1)).unwrap();
    dir.forget_member(&first, ReplicaId(1)).unwrap();
    assert_eq!(dir.noted_members().unwrap(), [of_b].into());
}

#[test]
fn the_membership_of_the_system_group_survives_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let dir = open(root.path()).unwrap();
    assert_eq!(dir.membership().unwrap(), None);
    let founder = Founder { member: ReplicaId(2), node: node(1), disk: dir.disk() };
    let membership = Membership { member: ReplicaId(2), opened: true, founders: vec![founder] };
    dir.save_membership(&membership).unwrap();
    drop(dir);
    assert_eq!(open(root.path()).unwrap().membership().unwrap(), Some(membership));
}
