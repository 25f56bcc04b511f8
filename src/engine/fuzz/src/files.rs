//! Files of a data directory from arbitrary bytes: as they are, or with checksums that are right, so that what is behind
//! them is reached. Reading them ends, with contents or with an error, and does so twice in the same way.

use std::{fs, path::Path};

use sharded_etcd_engine::verify;

const CLUSTER: u64 = 1;
const SALT: u64 = 0x5eed;
/// Revisions of a checkpoint: each takes memory.
const REVISIONS_MAX: u16 = 2000;

/// Writes what the input says into the directory and reads it.
pub fn run(dir: &Path, input: &[u8]) {
    let Some((kind, rest)) = input.split_first() else { return };
    let write =
        |name: &str, bytes: &[u8]| fs::write(dir.join(name), bytes).expect("the folder can be written");
    for name in ["wal-0000000000000001.log", "wal-0000000000000006.log", "checkpoint-0000000000000005.db"] {
        let _ = fs::remove_file(dir.join(name));
    }
    let identity =
        format!(r#"{{"format":1,"name":"f","cluster_id":{CLUSTER},"member_id":1,"has_log":false}}"#);
    write("identity.json", identity.as_bytes());
    match kind % 5 {
        0 => write("identity.json", rest),
        1 => write("wal-0000000000000001.log", &[b"SETCDWAL", rest].concat()),
        2 => write("wal-0000000000000001.log", &segment(1, rest)),
        3 => write("checkpoint-0000000000000005.db", &[b"SETCDCKP", rest].concat()),
        _ => {
            write("checkpoint-0000000000000005.db", &checkpoint(rest));
            write("wal-0000000000000006.log", &segment(6, &[]));
        }
    }
    let once = verify(dir);
    assert_eq!(once, verify(dir), "the same files were read in two ways");
    if let Ok(contents) = once {
        assert!(contents.revision >= 1 && contents.compact_revision <= contents.revision, "{contents:?}");
    }
}

/// Parts of the input: a length of two bytes, and so many bytes or what is left.
fn parts(mut input: &[u8]) -> Vec<&[u8]> {
    let mut parts = Vec::new();
    while let Some((len, rest)) = input.split_first_chunk::<2>() {
        let (part, rest) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
        parts.push(part);
        input = rest;
    }
    parts
}

/// A segment of format 1 whose records have these payloads.
fn segment(first: u64, input: &[u8]) -> Vec<u8> {
    let mut out = b"SETCDWAL".to_vec();
    out.extend(1u32.to_le_bytes());
    for number in [CLUSTER, first, SALT] {
        out.extend(number.to_le_bytes());
    }
    out.extend(crc32fast::hash(&out).to_le_bytes());
    out.resize(4096, 0);
    for (sequence, payload) in (first..).zip(parts(input)) {
        let len = payload.len() as u32;
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(&SALT.to_le_bytes());
        hasher.update(&len.to_le_bytes());
        hasher.update(&sequence.to_le_bytes());
        hasher.update(payload);
        out.extend(((SALT ^ (SALT >> 32)) as u32 | 1).to_le_bytes());
        out.extend(len.to_le_bytes());
        out.extend(sequence.to_le_bytes());
        out.extend(hasher.finalize().to_le_bytes());
        out.extend([0; 4]);
        out.extend(payload);
        out.resize(out.len().next_multiple_of(8), 0);
    }
    out
}

/// A checkpoint of format 1 whose blocks have these payloads; the first block begins with sane revisions.
fn checkpoint(input: &[u8]) -> Vec<u8> {
    let mut out = b"SETCDCKP".to_vec();
    out.extend(1u32.to_le_bytes());
    for number in [CLUSTER, 5] {
        out.extend(u64::to_le_bytes(number));
    }
    out.extend(crc32fast::hash(&out).to_le_bytes());
    for (index, part) in parts(input).into_iter().enumerate() {
        let mut payload = part.to_vec();
        if index == 0 && payload.len() >= 17 {
            // Tag, newest revision, compacted revision.
            for at in [1, 9] {
                let small = i64::from(u16::from_le_bytes([payload[at], payload[at + 1]]) % REVISIONS_MAX);
                payload[at..at + 8].copy_from_slice(&small.to_le_bytes());
            }
        }
        out.extend((payload.len() as u32).to_le_bytes());
        out.extend(crc32fast::hash(&payload).to_le_bytes());
        out.extend(payload);
    }
    out
}
