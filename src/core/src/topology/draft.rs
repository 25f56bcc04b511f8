//! From what was asked for to what is valid, with every problem named at once.

use std::{collections::BTreeMap, fmt, time::Duration};

use bytes::Bytes;

use super::{Keyspace, Pin, Rebalance, RebalanceMode, Topology};
use crate::keyspace::{KeyRange, Printable, RESERVED, Rules, prefix_end};

/// Most shards of one topology.
pub const SHARDS_MAX: u32 = 1024;
/// Longest name of a topology: `<name>-shard-1023` and the hash that Kubernetes puts behind it fit a label of 63 bytes.
pub const NAME_BYTES_MAX: usize = 40;
/// Most entries in each list of the keyspace (splittable, presplit, pins).
pub const BOUNDARIES_MAX: usize = 4096;
/// Longest prefix or boundary in bytes.
pub const PREFIX_BYTES_MAX: usize = 1024;
/// Most moves at the same time.
pub const CONCURRENT_MOVES_MAX: u32 = 64;
/// Slowest allowed copying: slower, and a busy range would never catch up with its own writes.
pub const BYTES_PER_SECOND_MIN: u64 = 64 << 10;
/// Default of `spec.rebalance.loadTolerance`, in operations a second: a part of what the slowest shard does.
pub const LOAD_TOLERANCE: u64 = 1000;
/// Least `spec.rebalance.loadTolerance`: below it is noise.
pub const LOAD_TOLERANCE_MIN: u64 = 10;
/// Most, which no shard reaches: nothing moves for load.
pub const LOAD_TOLERANCE_MAX: u64 = 1_000_000_000;
/// Weight of a shard that is given no other.
pub const WEIGHT: u32 = 100;
/// Largest weight of a shard, ten times the usual one. The smallest is 1.
pub const WEIGHT_MAX: u32 = 1000;
/// Smallest quota of a shard.
pub const QUOTA_BYTES_MIN: u64 = 16 << 20;
/// Shortest retention of history: paginated lists and watches that resume need some.
pub const RETENTION_MIN: Duration = Duration::from_secs(1);

const DELIMITER_BYTES_MAX: usize = 16;

/// What a user asked for, not checked yet. Fields are as wide as a file can have them, so that nonsense reaches
/// [`validate`] and gets its message there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Draft {
    /// `metadata.name`.
    pub name: String,
    /// `spec.shards`.
    pub shards: i64,
    /// `spec.keyspace.delimiter`.
    pub delimiter: Bytes,
    /// `spec.keyspace.splittable`.
    pub splittable: Vec<Bytes>,
    /// `spec.keyspace.presplit`.
    pub presplit: Vec<Bytes>,
    /// `spec.keyspace.pins`.
    pub pins: Vec<DraftPin>,
    /// `spec.rebalance.mode`.
    pub mode: RebalanceMode,
    /// `spec.rebalance.maxConcurrentMoves`.
    pub moves_max: i64,
    /// `spec.rebalance.bytesPerSecond`.
    pub bytes_per_second_max: Option<u64>,
    /// `spec.rebalance.loadTolerance`.
    pub load_tolerance: i64,
    /// `spec.rebalance.weights`.
    pub weights: Vec<DraftWeight>,
    /// `spec.rebalance.approvedPlan`.
    pub approved_plan: Option<String>,
    /// `spec.compaction.retention`.
    pub compaction_retention: Option<Duration>,
    /// `spec.etcd.quota`.
    pub quota_bytes: Option<u64>,
}

/// A pin, not checked yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DraftPin {
    /// `prefix`.
    pub prefix: Bytes,
    /// `shard`.
    pub shard: i64,
}

/// The weight of a shard, not checked yet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DraftWeight {
    /// `shard`.
    pub shard: i64,
    /// `weight`.
    pub weight: i64,
}

impl Draft {
    /// A draft with this name and number of shards, and the defaults of everything else.
    pub fn new(name: impl Into<String>, shards: u32) -> Self {
        let rebalance = Rebalance::default();
        Self {
            name: name.into(),
            shards: i64::from(shards),
            delimiter: Rules::default().delimiter,
            splittable: Vec::new(),
            presplit: Vec::new(),
            pins: Vec::new(),
            mode: rebalance.mode,
            moves_max: i64::from(rebalance.moves_max),
            bytes_per_second_max: None,
            load_tolerance: LOAD_TOLERANCE as i64,
            weights: Vec::new(),
            approved_plan: None,
            compaction_retention: None,
            quota_bytes: None,
        }
    }
}

/// One problem in a resource: where, and what to write instead.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct FieldError {
    /// Path of the field in the resource, as in `spec.keyspace.pins[1].shard`.
    pub field: String,
    /// What is wrong and what to write instead.
    pub message: String,
}

impl FieldError {
    /// A problem in `field`.
    pub fn new(field: impl Into<String>, message: impl Into<String>) -> Self {
        Self { field: field.into(), message: message.into() }
    }
}

impl fmt::Display for FieldError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.message)
    }
}

/// Checks a draft and makes the topology of it.
///
/// # Errors
/// All problems there are, in the order of the fields, each with what to write instead.
pub fn validate(draft: Draft) -> Result<Topology, Vec<FieldError>> {
    let mut check = Check::default();
    check.name(&draft.name);
    let shards = check.shards(draft.shards);
    let rules = check.rules(draft.delimiter, draft.splittable);
    let presplit = check.presplit(&rules, draft.presplit);
    let pins = check.pins(&rules, shards, draft.pins);
    let moves_max = check.moves_max(draft.moves_max);
    let load_tolerance = check.load_tolerance(draft.load_tolerance);
    let weights = check.weights(shards, draft.weights);
    check.approved_plan(draft.approved_plan.as_deref());
    check.limits(draft.bytes_per_second_max, draft.compaction_retention, draft.quota_bytes);
    if !check.errors.is_empty() {
        return Err(check.errors);
    }
    Ok(Topology {
        name: draft.name,
        generation: 0,
        shards,
        keyspace: Keyspace { rules, presplit, pins },
        rebalance: Rebalance {
            mode: draft.mode,
            moves_max,
            bytes_per_second_max: draft.bytes_per_second_max,
            load_tolerance,
            weights,
            approved_plan: draft.approved_plan,
        },
        compaction_retention: draft.compaction_retention,
        quota_bytes: draft.quota_bytes,
    })
}

/// Gathers the problems; each method checks one field, and gives a usable value also when it was wrong, so that the
/// next field can be checked.
#[derive(Default)]
struct Check {
    errors: Vec<FieldError>,
}

impl Check {
    fn wrong(&mut self, field: impl Into<String>, message: impl Into<String>) {
        self.errors.push(FieldError::new(field, message));
    }

    fn name(&mut self, name: &str) {
        let field = "metadata.name";
        let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if name.is_empty() {
            self.wrong(field, "missing; give the topology a name, such as demo");
        } else if name.len() > NAME_BYTES_MAX {
            let message = format!("{} bytes long; use at most {NAME_BYTES_MAX}", name.len());
            self.wrong(field, message);
        } else if !name.chars().all(|c| alphanumeric(c) || c == '-')
            || !name.starts_with(|c: char| c.is_ascii_lowercase())
            || !name.ends_with(alphanumeric)
        {
            let message = format!(
                "{name:?} is no name for objects; use lower-case letters, digits and '-', a letter first and no '-' last"
            );
            self.wrong(field, message);
        }
    }

    fn shards(&mut self, shards: i64) -> u32 {
        match u32::try_from(shards) {
            Ok(n @ 1..=SHARDS_MAX) => n,
            _ => {
                self.wrong("spec.shards", format!("{shards} is out of range; write 1 to {SHARDS_MAX}"));
                SHARDS_MAX
            }
        }
    }

    fn moves_max(&mut self, moves_max: i64) -> u32 {
        match u32::try_from(moves_max) {
            Ok(n @ 1..=CONCURRENT_MOVES_MAX) => n,
            _ => {
                let remedy = if moves_max == 0 { "; to move nothing, set mode: Paused" } else { "" };
                self.wrong(
                    "spec.rebalance.maxConcurrentMoves",
                    format!("{moves_max} is out of range; write 1 to {CONCURRENT_MOVES_MAX}{remedy}"),
                );
                1
            }
        }
    }

    fn load_tolerance(&mut self, tolerance: i64) -> u64 {
        match u64::try_from(tolerance) {
            Ok(n @ LOAD_TOLERANCE_MIN..=LOAD_TOLERANCE_MAX) => n,
            _ => {
                self.wrong(
                    "spec.rebalance.loadTolerance",
                    format!(
                        "{tolerance} is out of range; write {LOAD_TOLERANCE_MIN} to {LOAD_TOLERANCE_MAX}"
                    ),
                );
                LOAD_TOLERANCE
            }
        }
    }

    fn weights(&mut self, shards: u32, weights: Vec<DraftWeight>) -> BTreeMap<u32, u32> {
        let list = "spec.rebalance.weights";
        let mut accepted = BTreeMap::<u32, (usize, u32)>::new();
        for (i, DraftWeight { shard, weight }) in self.bounded(list, weights).into_iter().enumerate() {
            let field = format!("{list}[{i}]");
            let weight = match u32::try_from(weight) {
                Ok(n @ 1..=WEIGHT_MAX) => n,
                _ => {
                    let remedy = match weight {
                        0 => "; a shard that is to hold nothing has to leave, by a smaller spec.shards",
                        _ => "",
                    };
                    let message = format!(
                        "{weight} is out of range; write 1 to {WEIGHT_MAX}, where {WEIGHT} is usual{remedy}"
                    );
                    self.wrong(format!("{field}.weight"), message);
                    WEIGHT
                }
            };
            let Some(shard) = self.shard(&field, shard, shards) else { continue };
            if let Some((first, _)) = accepted.get(&shard) {
                let message =
                    format!("shard {shard} has a weight already, as weights[{first}]; remove one of both");
                self.wrong(format!("{field}.shard"), message);
                continue;
            }
            accepted.insert(shard, (i, weight));
        }
        accepted.into_iter().map(|(shard, (_, weight))| (shard, weight)).collect()
    }

    /// The index of a shard that there is, as an entry of a list names it.
    fn shard(&mut self, entry: &str, shard: i64, shards: u32) -> Option<u32> {
        let index = u32::try_from(shard).ok().filter(|s| *s < shards);
        if index.is_none() {
            let message = if shards == 1 {
                format!("there is no shard {shard}; write 0, the only one, or raise spec.shards")
            } else {
                format!("there is no shard {shard}; write 0 to {}, or raise spec.shards", shards - 1)
            };
            self.wrong(format!("{entry}.shard"), message);
        }
        index
    }

    fn approved_plan(&mut self, plan: Option<&str>) {
        let is_id =
            |plan: &str| plan.len() == 8 && plan.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if let Some(plan) = plan.filter(|plan| !is_id(plan)) {
            self.wrong(
                "spec.rebalance.approvedPlan",
                format!(
                    "{plan:?} is no plan; write the eight digits that the status names, such as 1a2b3c4d"
                ),
            );
        }
    }

    fn limits(&mut self, bytes_per_second: Option<u64>, retention: Option<Duration>, quota: Option<u64>) {
        if let Some(bytes) = bytes_per_second.filter(|b| *b < BYTES_PER_SECOND_MIN) {
            self.wrong(
                "spec.rebalance.bytesPerSecond",
                format!("{bytes} bytes a second would never end a move; write at least 64Ki"),
            );
        }
        if let Some(retention) = retention.filter(|r| *r < RETENTION_MIN) {
            self.wrong(
                "spec.compaction.retention",
                format!("{retention:?} is too short; write at least 1s, or leave it out to keep all history"),
            );
        }
        if let Some(bytes) = quota.filter(|b| *b < QUOTA_BYTES_MIN) {
            self.wrong(
                "spec.etcd.quota",
                format!("{bytes} bytes are too few; write at least 16Mi, such as 8Gi"),
            );
        }
    }

    fn rules(&mut self, delimiter: Bytes, splittable: Vec<Bytes>) -> Rules {
        if delimiter.len() > DELIMITER_BYTES_MAX {
            let message = format!("{} bytes long; use at most {DELIMITER_BYTES_MAX}", delimiter.len());
            self.wrong("spec.keyspace.delimiter", message);
        }
        let list = "spec.keyspace.splittable";
        let mut rules = Rules { delimiter, splittable: Vec::new() };
        if rules.delimiter.is_empty() && !splittable.is_empty() {
            self.wrong(
                list,
                "no effect, as delimiter \"\" already allows a boundary anywhere; remove one of both",
            );
            return rules;
        }
        let mut accepted = BTreeMap::<Bytes, usize>::new();
        for (i, prefix) in self.bounded(list, splittable).into_iter().enumerate() {
            let field = format!("{list}[{i}]");
            if !self.usable(
                &field,
                &prefix,
                "a splittable prefix",
                "set delimiter: \"\" to allow a boundary anywhere",
            ) {
                continue;
            }
            if !prefix.ends_with(&rules.delimiter) {
                let mut directory = prefix.to_vec();
                directory.extend_from_slice(&rules.delimiter);
                let message = format!(
                    "{} is no directory, as it does not end with the delimiter; write {}",
                    Printable(&prefix),
                    Printable(&directory)
                );
                self.wrong(field, message);
                continue;
            }
            if let Some(first) = accepted.insert(prefix.clone(), i) {
                self.wrong(
                    field,
                    format!("{} is there twice, first as [{first}]; remove one", Printable(&prefix)),
                );
                accepted.insert(prefix, first);
            }
        }
        for (prefix, i) in &accepted {
            let outer = accepted.keys().find(|other| *other != prefix && prefix.starts_with(other));
            if let Some(outer) = outer {
                let message = format!(
                    "{} lies inside {}, which is splittable already; remove one of both",
                    Printable(prefix),
                    Printable(outer)
                );
                self.wrong(format!("{list}[{i}]"), message);
            }
        }
        rules.splittable = accepted.into_keys().collect();
        rules
    }

    fn presplit(&mut self, rules: &Rules, presplit: Vec<Bytes>) -> Vec<Bytes> {
        let list = "spec.keyspace.presplit";
        let mut accepted = BTreeMap::<Bytes, usize>::new();
        for (i, at) in self.bounded(list, presplit).into_iter().enumerate() {
            let field = format!("{list}[{i}]");
            if !self.usable(&field, &at, "a boundary", "remove it, as the keyspace starts there anyway") {
                continue;
            }
            if let Some(first) = accepted.get(&at) {
                self.wrong(
                    field,
                    format!("{} is there twice, first as [{first}]; remove one", Printable(&at)),
                );
            } else if !rules.is_legal_boundary(&at) {
                self.wrong(field, parts_directory(rules, "a boundary at", &at));
            } else {
                accepted.insert(at, i);
            }
        }
        accepted.into_keys().collect()
    }

    fn pins(&mut self, rules: &Rules, shards: u32, pins: Vec<DraftPin>) -> Vec<Pin> {
        let list = "spec.keyspace.pins";
        let mut accepted = BTreeMap::<Bytes, (usize, u32)>::new();
        for (i, pin) in self.bounded(list, pins).into_iter().enumerate() {
            let field = format!("{list}[{i}]");
            let shard = self.shard(&field, pin.shard, shards);
            let field = format!("{field}.prefix");
            let remedy = "write the prefix to pin; to have everything on one shard, set spec.shards: 1";
            if !self.usable(&field, &pin.prefix, "a pin", remedy) {
                continue;
            }
            if let Some((first, _)) = accepted.get(&pin.prefix) {
                let message = format!(
                    "{} is pinned twice, first as pins[{first}]; remove one of both",
                    Printable(&pin.prefix)
                );
                self.wrong(field, message);
                continue;
            }
            let end = prefix_end(&pin.prefix);
            if rules.is_legal_boundary(&pin.prefix) && rules.is_legal_boundary(&end) {
                accepted.insert(pin.prefix, (i, shard.unwrap_or_default()));
            } else {
                self.wrong(field, parts_directory(rules, "a pin of", &pin.prefix));
            }
        }
        accepted.into_iter().map(|(prefix, (_, shard))| Pin { prefix, shard }).collect()
    }

    /// The list without what is beyond its bound.
    fn bounded<T>(&mut self, list: &str, mut entries: Vec<T>) -> Vec<T> {
        if entries.len() > BOUNDARIES_MAX {
            self.wrong(list, format!("{} entries; use at most {BOUNDARIES_MAX}", entries.len()));
            entries.truncate(BOUNDARIES_MAX);
        }
        entries
    }

    /// True if a prefix or boundary is not empty, not too long and below the hidden space.
    fn usable(&mut self, field: &str, bytes: &Bytes, what: &str, if_empty: &str) -> bool {
        let message = if bytes.is_empty() {
            format!("{what} cannot be empty; {if_empty}")
        } else if bytes.len() > PREFIX_BYTES_MAX {
            format!("{} bytes long; use at most {PREFIX_BYTES_MAX}", bytes.len())
        } else if bytes.as_ref() >= RESERVED {
            format!(
                "{} lies in the topology's own hidden space, where clients have no keys; write a prefix below {}",
                Printable(bytes),
                Printable(RESERVED)
            )
        } else {
            return true;
        };
        self.wrong(field, message);
        false
    }
}

/// Why `at` is no boundary, and what to write instead.
fn parts_directory(rules: &Rules, what: &str, at: &[u8]) -> String {
    let parted = rules.directory(at).unwrap_or_default();
    let mut below = at.to_vec();
    below.extend_from_slice(&rules.delimiter);
    format!(
        "{what} {} would part the keys of directory {}, which transactions need on one shard; write {} or {}, or add \
         {} to spec.keyspace.splittable",
        Printable(at),
        Printable(parted),
        Printable(&below),
        Printable(parted),
        Printable(parted)
    )
}

/// The range of all keys with the pin's prefix, up to the end of the keyspace if nothing comes after them.
pub(super) fn pinned_range(pin: &Pin) -> KeyRange {
    KeyRange::prefix(&pin.prefix)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn bytes(text: &[&'static str]) -> Vec<Bytes> {
        text.iter().map(|t| Bytes::from_static(t.as_bytes())).collect()
    }

    fn pin(prefix: &'static str, shard: i64) -> DraftPin {
        DraftPin { prefix: Bytes::from_static(prefix.as_bytes()), shard }
    }

    fn refused(change: impl FnOnce(&mut Draft)) -> String {
        let mut draft = Draft::new("demo", 3);
        change(&mut draft);
        validate(draft).unwrap_err().iter().map(ToString::to_string).collect::<Vec<_>>().join("\n")
    }

    #[test]
    fn good_drafts() {
        let mut draft = Draft::new("demo", 3);
        draft.splittable = bytes(&["/registry/pods/"]);
        draft.presplit = bytes(&["/registry/services/", "/registry/pods/kube-"]);
        draft.pins = vec![pin("/registry/events/", 2), pin("/registry/pods/web-", 1), pin("plain", 0)];
        let topology = validate(draft).unwrap();
        assert_eq!(topology.keyspace.presplit, bytes(&["/registry/pods/kube-", "/registry/services/"]));
        assert_eq!(topology.keyspace.pins[1].shard, 1);
        let mut anywhere = Draft::new("demo", 1);
        anywhere.delimiter = Bytes::new();
        anywhere.presplit = bytes(&["/a/b"]);
        validate(anywhere).unwrap();
    }

    #[test]
    fn names() {
        assert_eq!(
            refused(|d| d.name = String::new()),
            "metadata.name: missing; give the topology a name, such as demo"
        );
        assert!(refused(|d| d.name = "x".repeat(41)).contains("use at most 40"));
        for bad in ["Demo", "a_b", "-a", "a-", "1a", "a.b", "ü"] {
            let message = refused(|d| d.name = bad.to_owned());
            assert!(message.contains("use lower-case letters"), "{bad}: {message}");
        }
    }

    #[test]
    fn numbers() {
        assert_eq!(refused(|d| d.shards = 0), "spec.shards: 0 is out of range; write 1 to 1024");
        assert_eq!(refused(|d| d.shards = -1), "spec.shards: -1 is out of range; write 1 to 1024");
        assert_eq!(refused(|d| d.shards = 1025), "spec.shards: 1025 is out of range; write 1 to 1024");
        assert!(refused(|d| d.moves_max = 0).contains("set mode: Paused"));
        assert!(refused(|d| d.moves_max = 65).contains("write 1 to 64"));
        for no_id in ["", "1a2b3c4", "1A2B3C4D", "1a2b3c4d5", "1a2b3c4g"] {
            let why = refused(|d| d.approved_plan = Some(no_id.to_owned()));
            assert!(why.contains("such as 1a2b3c4d"), "{why}");
        }
        assert!(refused(|d| d.load_tolerance = 9).contains("write 10 to 1000000000"));
        assert!(refused(|d| d.bytes_per_second_max = Some(1)).contains("at least 64Ki"));
        assert!(refused(|d| d.compaction_retention = Some(Duration::ZERO)).contains("at least 1s"));
        assert!(refused(|d| d.quota_bytes = Some(1)).contains("at least 16Mi"));
    }

    #[test]
    fn boundaries_obey_the_directory_rule() {
        let message = refused(|d| d.presplit = bytes(&["/registry/pods/kube-"]));
        assert_eq!(
            message,
            "spec.keyspace.presplit[0]: a boundary at \"/registry/pods/kube-\" would part the keys of directory \
             \"/registry/pods/\", which transactions need on one shard; write \"/registry/pods/kube-/\" or \
             \"/registry/pods/\", or add \"/registry/pods/\" to spec.keyspace.splittable"
        );
        let message = refused(|d| d.pins = vec![pin("/registry/events", 1)]);
        assert!(message.starts_with("spec.keyspace.pins[0].prefix: a pin of"), "{message}");
        assert!(message.contains("write \"/registry/events/\""), "{message}");
    }

    #[test]
    fn prefixes() {
        assert!(refused(|d| d.pins = vec![pin("", 0)]).contains("set spec.shards: 1"));
        assert!(refused(|d| d.presplit = bytes(&[""])).contains("remove it"));
        assert!(refused(|d| d.splittable = bytes(&[""])).contains("set delimiter: \"\""));
        assert!(refused(|d| d.splittable = bytes(&["/pods"])).contains("write \"/pods/\""));
        assert!(refused(|d| d.splittable = bytes(&["/a/", "/a/b/"])).contains("inside \"/a/\""));
        assert!(refused(|d| d.splittable = bytes(&["/a/", "/a/"])).contains("there twice, first as [0]"));
        assert!(refused(|d| d.presplit = bytes(&["/a/", "/a/"])).contains("there twice, first as [0]"));
        let hidden = Bytes::from_static(b"\xff\xff\xff\xffF/");
        let prefix = hidden.clone();
        assert!(refused(|d| d.pins = vec![DraftPin { prefix, shard: 0 }]).contains("hidden space"));
        assert!(refused(|d| d.presplit = vec![hidden]).contains("hidden space"));
        assert!(refused(|d| d.presplit = vec![Bytes::from(vec![b'a'; 1025])]).contains("use at most 1024"));
        assert!(refused(|d| d.delimiter = Bytes::from(vec![b'/'; 17])).contains("use at most 16"));
        assert!(refused(|d| d.presplit = vec![Bytes::from_static(b"a"); 4097]).contains("use at most 4096"));
        let both = |d: &mut Draft| {
            d.delimiter = Bytes::new();
            d.splittable = bytes(&["/a/"]);
        };
        assert!(refused(both).contains("remove one of both"));
    }

    #[test]
    fn pins_name_shards_that_are_there() {
        assert_eq!(
            refused(|d| d.pins = vec![pin("/a/", 3)]),
            "spec.keyspace.pins[0].shard: there is no shard 3; write 0 to 2, or raise spec.shards"
        );
        assert!(refused(|d| d.pins = vec![pin("/a/", -1)]).contains("there is no shard -1"));
        assert!(
            refused(|d| d.pins = vec![pin("/a/", 0), pin("/a/", 1)])
                .contains("pinned twice, first as pins[0]")
        );
    }

    #[test]
    fn weights_of_shards_that_are_there() {
        let of = |weights: &[(i64, i64)]| {
            weights.iter().map(|&(shard, weight)| DraftWeight { shard, weight }).collect::<Vec<_>>()
        };
        let mut draft = Draft::new("demo", 3);
        draft.weights = of(&[(2, 1000), (0, 1)]);
        let rebalance = validate(draft).unwrap().rebalance;
        assert_eq!([0, 1, 2].map(|shard| rebalance.weight(shard)), [1, 100, 1000]);
        assert_eq!(
            refused(|d| d.weights = of(&[(3, 50)])),
            "spec.rebalance.weights[0].shard: there is no shard 3; write 0 to 2, or raise spec.shards"
        );
        assert_eq!(
            refused(|d| d.weights = of(&[(1, 50), (2, 50), (1, 60)])),
            "spec.rebalance.weights[2].shard: shard 1 has a weight already, as weights[0]; remove one of both"
        );
        assert!(refused(|d| d.weights = of(&[(-1, 50)])).contains("there is no shard -1"));
        assert!(refused(|d| d.weights = of(&[(0, 0)])).contains("by a smaller spec.shards"));
        for weight in [-1, 1001, i64::MAX] {
            let message = refused(|d| d.weights = of(&[(0, weight)]));
            assert!(
                message.contains("weights[0].weight") && message.contains("write 1 to 1000"),
                "{message}"
            );
        }
    }

    #[test]
    fn all_problems_at_once() {
        let message = refused(|d| {
            d.name = "Demo".to_owned();
            d.shards = 0;
            d.presplit = bytes(&["/a/b"]);
            d.pins = vec![pin("/x", 5000)];
            d.moves_max = 0;
        });
        assert_eq!(message.lines().count(), 6, "{message}");
    }
}
