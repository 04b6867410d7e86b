//! Ranges and uids; what needs root is skipped for others.

use std::os::unix::fs::{MetadataExt as _, chown, symlink};

use super::*;

const FIRST: u32 = 1_900_000_000;

fn isolation(directory: &Path) -> Isolation {
    let (first, range) = take_range(&directory.join("ranges"), FIRST, "me").unwrap();
    Isolation(Arc::new(Inner { first, handing_over: Mutex::new(()), _range: range }))
}

#[test]
fn a_range_is_one_nodes_and_is_found_again() {
    let directory = tempfile::tempdir().unwrap();
    let take = |owner: &str| take_range(directory.path(), FIRST, owner).unwrap();
    let (a, a_range) = take("a");
    let (b, _b_range) = take("b");
    assert_eq!((a, b), (FIRST, FIRST + UIDS_PER_NODE));
    drop(a_range);
    let (c, _c_range) = take("c");
    assert_eq!(
        c,
        FIRST + 2 * UIDS_PER_NODE,
        "a range is left to its node as long as others are free"
    );
    assert_eq!(take("a").0, FIRST);
}

#[test]
fn a_kernel_keeps_its_uid_and_no_two_have_the_same() {
    if !is_root() {
        eprintln!("skipped: only root may give directories away");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let work = directory.path().join("work");
    let isolation = isolation(directory.path());
    let uid = |name: &str| {
        fs::create_dir_all(work.join(name)).unwrap();
        let uid = isolation.uid_of(&work.join(name), &work).unwrap();
        give(&work.join(name), uid).unwrap();
        uid
    };
    assert_eq!([uid("a"), uid("b"), uid("a")], [FIRST, FIRST + 1, FIRST]);
    fs::remove_dir(work.join("a")).unwrap();
    assert_eq!([uid("c"), uid("b")], [FIRST, FIRST + 1]);
    // Two directories of one owner, as after a restore by hand: the second one gets another.
    fs::create_dir_all(work.join("d")).unwrap();
    chown(work.join("d"), Some(FIRST), Some(FIRST)).unwrap();
    assert_eq!(uid("d"), FIRST + 2);
}

#[test]
fn giving_a_directory_follows_no_link_and_leaves_files_of_others() {
    if !is_root() {
        eprintln!("skipped: only root may give directories away");
        return;
    }
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name);
    fs::create_dir_all(at("k/sub")).unwrap();
    for name in ["secret", "k/sub/own", "k/foreign"] {
        fs::write(at(name), name).unwrap();
    }
    symlink(at("secret"), at("k/sub/link")).unwrap();
    symlink(directory.path(), at("k/way")).unwrap();
    for name in ["k", "k/sub", "k/sub/own"] {
        chown(at(name), Some(FIRST), Some(FIRST)).unwrap();
    }
    give(&at("k"), FIRST + 1).unwrap();
    let owner = |name: &str| fs::symlink_metadata(at(name)).unwrap().uid();
    assert_eq!([owner("k"), owner("k/sub"), owner("k/sub/own")], [FIRST + 1; 3]);
    assert_eq!([owner("secret"), owner("k/foreign")], [0; 2]);
}

#[test]
fn what_a_uid_left_running_is_ended() {
    use std::os::unix::process::{CommandExt as _, ExitStatusExt as _};
    if !is_root() {
        eprintln!("skipped: only root may start processes of others");
        return;
    }
    let uid = FIRST + 77;
    let mut command = std::process::Command::new("sleep");
    let mut left = command.arg("600").uid(uid).gid(uid).current_dir("/").spawn().unwrap();
    end_all_of(uid).unwrap();
    assert_eq!(left.wait().unwrap().signal(), Some(9));
}
