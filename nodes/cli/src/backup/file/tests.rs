//! A file is whole, or it is refused with a sentence.

use bytes::Bytes;
use callboard_policy::terms::Part;

use super::*;

const CHUNK: &[u8] = b"the bytes of a large variable";

fn groups() -> Vec<(String, StateGroup)> {
    let hash = *blake3::hash(CHUNK).as_bytes();
    let parts = vec![
        Part::Inline(Bytes::from_static(b"stream")),
        Part::Chunk { hash, length: CHUNK.len() as u64 },
    ];
    let (names, kind) = (vec!["big".to_owned()], "variables".to_owned());
    vec![("big".to_owned(), StateGroup { names, kind, parts })]
}

fn write(path: &Path, change: impl FnOnce(&mut About), chunks: &[&[u8]]) {
    let mut about = About::new(Seq(7), Vec::new(), 8);
    change(&mut about);
    let mut writer = Writer::create(path, about, &groups()).unwrap();
    for chunk in chunks {
        writer.chunk(*blake3::hash(CHUNK).as_bytes(), chunk).unwrap();
    }
    writer.finish().unwrap();
}

fn refusal(path: &Path) -> String {
    read(path, |_, _| Ok(())).unwrap_err().message
}

#[test]
fn what_was_written_is_read_back() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    write(&path, |about| about.kernel = "k".to_owned(), &[CHUNK]);
    let mut chunks = Vec::new();
    let checked = read(&path, |_, bytes| {
        chunks.push(bytes);
        Ok(())
    });
    let checked = checked.unwrap();
    assert_eq!((checked.groups, chunks), (groups(), vec![CHUNK.to_vec()]));
    assert_eq!((checked.about.cell, checked.about.execution_count), (Seq(7), 8));
}

#[test]
fn a_foreign_a_newer_and_a_damaged_file_each_get_a_sentence() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    std::fs::write(&path, b"not an archive at all").unwrap();
    assert!(refusal(&path).contains("is not a backup of a kernel"), "{}", refusal(&path));
    std::fs::write(&path, b"").unwrap();
    assert!(refusal(&path).contains("is not a backup of a kernel"), "{}", refusal(&path));
    write(&path, |about| about.version = 9, &[CHUNK]);
    assert!(refusal(&path).contains("is a backup of format 9"), "{}", refusal(&path));
    write(&path, |about| about.format = "other".to_owned(), &[CHUNK]);
    assert!(refusal(&path).contains("is not a backup of a kernel"), "{}", refusal(&path));
    write(&path, |_| {}, &[]);
    assert!(refusal(&path).contains("is missing): nothing was started"), "{}", refusal(&path));
    write(&path, |_| {}, &[b"other bytes under that name"]);
    assert!(refusal(&path).contains("is damaged (chunks/"), "{}", refusal(&path));
    assert!(refusal(&directory.path().join("none")).contains("cannot read"));
}

#[test]
fn a_file_cut_or_changed_anywhere_is_never_taken_for_whole() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("a");
    write(&path, |_| {}, &[CHUNK]);
    let whole = std::fs::read(&path).unwrap();
    for at in 0..whole.len() {
        std::fs::write(&path, &whole[..at]).unwrap();
        assert!(!refusal(&path).is_empty(), "cut at {at}");
    }
    // Header bytes of gzip (name, time, system) may change and mean nothing.
    for at in 10..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 0x10;
        std::fs::write(&path, &bytes).unwrap();
        if let Ok(checked) = read(&path, |_, _| Ok(())) {
            assert_eq!(checked.groups, groups(), "changed at {at}");
        }
    }
}
