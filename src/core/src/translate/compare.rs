//! Compares on revisions of the line, as compares on local revisions.

use bytes::Bytes;
use sharded_etcd_etcd_api::messages as pb;

use crate::{keyspace::ShardIx, line::Fold};

/// A compare as the shard can decide it.
#[derive(Debug, Clone, PartialEq)]
pub enum Translated {
    /// Sent as it is here.
    Native(pb::Compare),
    /// Has this result whatever the shard holds.
    Constant(bool),
    /// Has this result as long as no key of the compare was modified after local revision `V`; else not known yet.
    Beyond(bool),
    /// Speaks of what was known before an import: read, decided by the proxy, and guarded on what was read.
    Read,
}

/// Translates one compare for the shard that owns its keys. `imported_at` is the highest flip revision of the ranges it
/// touches, 0 if none was imported.
pub fn translate_compare(fold: &Fold, shard: ShardIx, imported_at: i64, compare: &pb::Compare) -> Translated {
    let known = pb::CompareTarget::try_from(compare.target).is_ok()
        && pb::CompareResult::try_from(compare.result).is_ok();
    if !known {
        // Its outcome does not depend on numbers: the shard decides it as etcd does.
        return Translated::Native(compare.clone());
    }
    let given = match (&compare.target_union, compare.target()) {
        (Some(pb::TargetUnion::ModRevision(g)), pb::CompareTarget::Mod)
        | (Some(pb::TargetUnion::CreateRevision(g)), pb::CompareTarget::Create) => *g,
        (None, pb::CompareTarget::Mod | pb::CompareTarget::Create) => 0,
        (union, pb::CompareTarget::Version) if imported_at > 0 => {
            let version = match union {
                Some(pb::TargetUnion::Version(v)) => *v,
                _ => 0,
            };
            // A live key has a version above 0 wherever it is counted from.
            return if version <= 0 { Translated::Native(compare.clone()) } else { Translated::Read };
        }
        // A union of another target counts as 0 (etcd: compareKV).
        (_, pb::CompareTarget::Mod | pb::CompareTarget::Create) => 0,
        _ => return Translated::Native(compare.clone()),
    };
    if given <= 0 {
        return Translated::Native(with_revision(compare, given));
    }
    if given <= imported_at {
        return Translated::Read;
    }
    revision_compare(fold, shard, given, compare)
}

fn revision_compare(fold: &Fold, shard: ShardIx, given: i64, compare: &pb::Compare) -> Translated {
    let at_most = |revision| fold.local_at_most(shard, revision).unwrap_or(0);
    let exact = || {
        let local = at_most(given);
        (fold.global(shard, local) == Some(given) && fold.shard(shard).is_some_and(|s| local > s.l0))
            .then_some(local)
    };
    let known = given <= fold.revision;
    let native = |result: pb::CompareResult, local| {
        let compare = pb::Compare { result: result.into(), ..compare.clone() };
        Translated::Native(with_revision(&compare, local))
    };
    match compare.result() {
        pb::CompareResult::Equal if !known => Translated::Beyond(false),
        pb::CompareResult::NotEqual if !known => Translated::Beyond(true),
        pb::CompareResult::Equal => {
            exact().map_or(Translated::Constant(false), |l| native(pb::CompareResult::Equal, l))
        }
        pb::CompareResult::NotEqual => {
            exact().map_or(Translated::Constant(true), |l| native(pb::CompareResult::NotEqual, l))
        }
        // `< G` is `<= the last local revision before G`; what is not numbered yet comes after R, so at R + 1 or later.
        pb::CompareResult::Less if given > fold.revision + 1 => Translated::Beyond(true),
        pb::CompareResult::Less => native(pb::CompareResult::Less, at_most(given - 1) + 1),
        pb::CompareResult::Greater if !known => Translated::Beyond(false),
        pb::CompareResult::Greater => native(pb::CompareResult::Greater, at_most(given)),
    }
}

fn with_revision(compare: &pb::Compare, revision: i64) -> pb::Compare {
    let target_union = Some(match compare.target() {
        pb::CompareTarget::Create => pb::TargetUnion::CreateRevision(revision),
        _ => pb::TargetUnion::ModRevision(revision),
    });
    pb::Compare { target_union, ..compare.clone() }
}

/// A compare on `key` that no state satisfies: a version below zero.
pub fn impossible(key: Bytes) -> pb::Compare {
    pb::Compare {
        result: pb::CompareResult::Less.into(),
        target: pb::CompareTarget::Version.into(),
        key,
        range_end: Bytes::new(),
        target_union: Some(pb::TargetUnion::Version(0)),
    }
}

/// The result of a compare on the keys in its range, as clients know them (etcd: `applyCompare`).
pub fn evaluate(compare: &pb::Compare, kvs: &[pb::KeyValue]) -> bool {
    if kvs.is_empty() {
        // A missing key equals zero in every respect but its value, which equals nothing.
        return compare.target() != pb::CompareTarget::Value && holds(compare, &pb::KeyValue::default());
    }
    kvs.iter().all(|kv| holds(compare, kv))
}

fn holds(compare: &pb::Compare, kv: &pb::KeyValue) -> bool {
    let union = compare.target_union.as_ref();
    // etcd takes what it does not know as equal, and a relation that it does not know as given (`compareKV`).
    let (Ok(target), Ok(result)) =
        (pb::CompareTarget::try_from(compare.target), pb::CompareResult::try_from(compare.result))
    else {
        return !matches!(
            pb::CompareResult::try_from(compare.result),
            Ok(pb::CompareResult::NotEqual | pb::CompareResult::Greater | pb::CompareResult::Less)
        );
    };
    let ordering = match target {
        pb::CompareTarget::Value => {
            let given: &[u8] = match union {
                Some(pb::TargetUnion::Value(v)) => v,
                _ => &[],
            };
            kv.value.as_ref().cmp(given)
        }
        pb::CompareTarget::Create => kv.create_revision.cmp(&match union {
            Some(pb::TargetUnion::CreateRevision(v)) => *v,
            _ => 0,
        }),
        pb::CompareTarget::Mod => kv.mod_revision.cmp(&match union {
            Some(pb::TargetUnion::ModRevision(v)) => *v,
            _ => 0,
        }),
        pb::CompareTarget::Version => kv.version.cmp(&match union {
            Some(pb::TargetUnion::Version(v)) => *v,
            _ => 0,
        }),
        pb::CompareTarget::Lease => kv.lease.cmp(&match union {
            Some(pb::TargetUnion::Lease(v)) => *v,
            _ => 0,
        }),
    };
    match result {
        pb::CompareResult::Equal => ordering.is_eq(),
        pb::CompareResult::NotEqual => ordering.is_ne(),
        pb::CompareResult::Greater => ordering.is_gt(),
        pb::CompareResult::Less => ordering.is_lt(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        keyspace::{KeyRange, RangeEntry, Rid},
        line::{Entry, Init, Join},
    };

    /// Shard 0: locals 3,4 → 2,3 and 5 → 6; shard 1: locals 3,4 → 4,5. R = 6.
    fn fold() -> Fold {
        let join = |n: &str| Join { shard: n.into(), incarnation: 0, l0: 2, etcd_cluster_id: 1 };
        let range = |s: &'static str, e: &'static str, ix| RangeEntry {
            range: KeyRange::new(s, e),
            rid: Rid::new(s),
            shard: ShardIx(ix),
            imported_at: 0,
        };
        let init = Init {
            cluster_id: 1,
            joins: vec![join("a"), join("b")],
            ranges: vec![range("", "m", 0), range("m", "", 1)],
        };
        let mut fold = Fold::start(1, &Entry::Init(init)).unwrap();
        fold.apply(2, &Entry::Adv(vec![(ShardIx(0), 4), (ShardIx(1), 4)])).unwrap();
        fold.apply(3, &Entry::Adv(vec![(ShardIx(0), 5)])).unwrap();
        assert_eq!(fold.revision, 6);
        fold
    }

    fn compare(result: pb::CompareResult, g: i64) -> pb::Compare {
        pb::Compare {
            result: result.into(),
            target: pb::CompareTarget::Mod.into(),
            key: "k".into(),
            range_end: Bytes::new(),
            target_union: Some(pb::TargetUnion::ModRevision(g)),
        }
    }

    /// For every local revision and every number, the translated compare on locals says what the compare on numbers says.
    #[test]
    fn translated_compares_agree_with_numbers() {
        let fold = fold();
        use pb::CompareResult::{Equal, Greater, Less, NotEqual};
        for shard in [ShardIx(0), ShardIx(1)] {
            for result in [Equal, NotEqual, Less, Greater] {
                for g in 0..=9 {
                    let c = compare(result, g);
                    let translated = translate_compare(&fold, shard, 0, &c);
                    let v = fold.shard(shard).unwrap().v;
                    for local in [0, 3, 4, 5].into_iter().filter(|&l| l <= v) {
                        let global = if local == 0 { 0 } else { fold.global(shard, local).unwrap() };
                        let kv = |m| pb::KeyValue { mod_revision: m, ..Default::default() };
                        let want = evaluate(&c, &[kv(global)]);
                        let got = match &translated {
                            Translated::Native(c) => evaluate(c, &[kv(local)]),
                            Translated::Constant(b) | Translated::Beyond(b) => *b,
                            Translated::Read => panic!("nothing was imported"),
                        };
                        assert_eq!(got, want, "{shard:?} {result:?} {g} local {local}: {translated:?}");
                    }
                }
            }
        }
    }

    #[test]
    fn old_numbers_of_imported_ranges_are_read() {
        let fold = fold();
        let c = compare(pb::CompareResult::Equal, 3);
        assert_eq!(translate_compare(&fold, ShardIx(0), 5, &c), Translated::Read);
        assert!(matches!(translate_compare(&fold, ShardIx(0), 2, &c), Translated::Native(_)));
        let absent = compare(pb::CompareResult::Equal, 0);
        assert!(matches!(translate_compare(&fold, ShardIx(0), 5, &absent), Translated::Native(_)));
        let version = pb::Compare {
            target: pb::CompareTarget::Version.into(),
            target_union: Some(pb::TargetUnion::Version(2)),
            ..c
        };
        assert_eq!(translate_compare(&fold, ShardIx(0), 5, &version), Translated::Read);
        assert!(matches!(translate_compare(&fold, ShardIx(0), 0, &version), Translated::Native(_)));
    }

    #[test]
    fn unknown_kinds_of_newer_clients_are_taken_as_etcd_takes_them() {
        let kv = pb::KeyValue { version: 3, mod_revision: 5, ..Default::default() };
        // A relation that etcd does not know holds; a target that it does not know is equal to what is given.
        for g in [0, 5, 9] {
            let unknown = pb::Compare { result: 9, ..compare(pb::CompareResult::Equal, g) };
            assert!(evaluate(&unknown, std::slice::from_ref(&kv)));
            let translated = translate_compare(&fold(), ShardIx(0), 0, &unknown);
            assert!(
                matches!(&translated, Translated::Native(c) if evaluate(c, std::slice::from_ref(&kv)))
                    || translated == Translated::Constant(true),
                "{g}: {translated:?}"
            );
        }
        for (result, expected) in [(pb::CompareResult::Equal, true), (pb::CompareResult::Greater, false)] {
            let unknown = pb::Compare { target: 9, ..compare(result, 0) };
            assert_eq!(evaluate(&unknown, std::slice::from_ref(&kv)), expected);
            assert_eq!(evaluate(&unknown, &[]), expected);
        }
    }

    #[test]
    fn missing_keys_compare_as_zero_but_have_no_value() {
        let mut c = compare(pb::CompareResult::Equal, 0);
        assert!(evaluate(&c, &[]));
        c.target = pb::CompareTarget::Value.into();
        c.target_union = Some(pb::TargetUnion::Value(Bytes::new()));
        assert!(!evaluate(&c, &[]));
        assert!(!evaluate(&impossible("k".into()), &[]));
    }
}
