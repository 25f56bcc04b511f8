//! The index: an ordered, persistent map from keys to their newest versions.
//!
//! A B+ tree whose nodes are shared between snapshots and copied before they are changed. It exists for its size, as there
//! is an entry for each key: nodes have no empty places, and one that is full and grows at its end stays full, so that keys
//! that come in order, as those of a start do, take 28 bytes each; a map with nodes of fixed size took 87.

use std::{ops::Bound, slice, sync::Arc};

use super::{Key, VersionRef, key_range::Bounds};

/// Entries of a leaf at most. All of them are copied where one changes.
const LEAF_MAX: usize = 16;
/// Children of a branch at most.
const BRANCH_MAX: usize = 32;

/// A key and its newest version.
type Entry = (Key, VersionRef);

#[derive(Debug, Clone)]
enum Node {
    Leaf(Vec<Entry>),
    Branch(Vec<Child>),
}

#[derive(Debug, Clone)]
struct Child {
    /// Not behind any key below the node, and behind all keys before it; of a branch's first child it means nothing.
    first: Key,
    node: Arc<Node>,
}

/// The map. A clone costs a reference count.
#[derive(Debug, Clone)]
pub(super) struct Index {
    root: Arc<Node>,
    len: usize,
}

impl Default for Index {
    fn default() -> Self {
        Self { root: Arc::new(Node::Leaf(Vec::new())), len: 0 }
    }
}

/// Which child a key is below.
fn child_of(children: &[Child], key: &[u8]) -> usize {
    children.partition_point(|child| &*child.first <= key).saturating_sub(1)
}

fn place_of(entries: &[Entry], key: &[u8]) -> Result<usize, usize> {
    entries.binary_search_by(|(found, _)| (**found).cmp(key))
}

impl Index {
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn get(&self, key: &[u8]) -> Option<&VersionRef> {
        let mut node = &*self.root;
        loop {
            match node {
                Node::Branch(children) => node = &children.get(child_of(children, key))?.node,
                Node::Leaf(entries) => {
                    return place_of(entries, key).ok().map(|at| &entries[at].1);
                }
            }
        }
    }

    /// Like [`Self::get`], to change it: the nodes on the way are this map's own afterwards.
    pub(super) fn get_mut(&mut self, key: &[u8]) -> Option<&mut VersionRef> {
        let mut node = Arc::make_mut(&mut self.root);
        loop {
            match node {
                Node::Branch(children) => {
                    let at = child_of(children, key);
                    node = Arc::make_mut(&mut children.get_mut(at)?.node);
                }
                Node::Leaf(entries) => {
                    let at = place_of(entries, key).ok()?;
                    return Some(&mut entries[at].1);
                }
            }
        }
    }

    /// Adds a key, or gives one another version.
    pub(super) fn insert(&mut self, key: Key, version: VersionRef) {
        let (is_new, right) = insert(&mut self.root, key, version);
        self.len += usize::from(is_new);
        if let Some(right) = right {
            // The first key of the left one is never looked at.
            let left = Child { first: right.first.clone(), node: Arc::clone(&self.root) };
            self.root = Arc::new(Node::Branch(vec![left, right]));
        }
    }

    pub(super) fn remove(&mut self, key: &[u8]) {
        if self.get(key).is_none() {
            return;
        }
        remove(Arc::make_mut(&mut self.root), key);
        self.len -= 1;
        while let Node::Branch(children) = &*self.root {
            let root = match children.as_slice() {
                [] => Arc::new(Node::Leaf(Vec::new())),
                [only] => Arc::clone(&only.node),
                _ => break,
            };
            self.root = root;
        }
    }

    /// All entries by ascending key.
    pub(super) fn iter(&self) -> Range<'_> {
        self.range((Bound::Unbounded, Bound::Unbounded))
    }

    /// The entries between two ends by ascending key.
    pub(super) fn range<'a>(&'a self, (start, end): Bounds<'a>) -> Range<'a> {
        let mut range = Range { branches: Vec::new(), leaf: Default::default(), end, is_last: false };
        range.descend(&self.root, start);
        range
    }
}

/// Makes room in a vector for one more, and for that one only.
fn insert_at<T>(vector: &mut Vec<T>, at: usize, item: T) {
    vector.reserve_exact(1);
    vector.insert(at, item);
}

/// Where to split a full node that gets something new at `at`: at its end, if that is where it grows.
fn split_at(len: usize, at: usize) -> usize {
    if at == len { len } else { len / 2 }
}

/// Adds `item` at `at`; the items that are too many afterwards.
fn insert_or_split<T>(items: &mut Vec<T>, at: usize, item: T, max: usize) -> Option<Vec<T>> {
    if items.len() < max {
        insert_at(items, at, item);
        return None;
    }
    let split = split_at(items.len(), at);
    let mut right = Vec::new();
    right.reserve_exact(items.len() - split + usize::from(at >= split));
    right.extend(items.drain(split..));
    match at.checked_sub(split) {
        Some(at) => insert_at(&mut right, at, item),
        None => insert_at(items, at, item),
    }
    items.shrink_to_fit();
    Some(right)
}

/// Whether the key is new, and a node to the right of this one, if it had to be split.
fn insert(node: &mut Arc<Node>, key: Key, version: VersionRef) -> (bool, Option<Child>) {
    match Arc::make_mut(node) {
        Node::Leaf(entries) => match place_of(entries, &key) {
            Ok(at) => {
                entries[at].1 = version;
                (false, None)
            }
            Err(at) => {
                let right = insert_or_split(entries, at, (key, version), LEAF_MAX);
                let right =
                    right.map(|right| Child { first: right[0].0.clone(), node: Arc::new(Node::Leaf(right)) });
                (true, right)
            }
        },
        Node::Branch(children) => {
            let mut at = child_of(children, &key);
            if is_behind_full(&children[at].node, &key)
                && let Some(next) = children.get_mut(at + 1).filter(|next| has_room(&next.node))
            {
                // Not a leaf of its own for each key that comes a moment after the one behind it.
                next.first = key.clone();
                at += 1;
            }
            let (is_new, right) = insert(&mut children[at].node, key, version);
            let right = right.and_then(|right| insert_or_split(children, at + 1, right, BRANCH_MAX));
            let right = right
                .map(|right| Child { first: right[0].first.clone(), node: Arc::new(Node::Branch(right)) });
            (is_new, right)
        }
    }
}

/// Whether a leaf is full and the key is behind all of its keys.
fn is_behind_full(node: &Node, key: &Key) -> bool {
    matches!(node, Node::Leaf(entries) if entries.len() >= LEAF_MAX && entries.last().is_some_and(|(last, _)| last < key))
}

fn has_room(node: &Node) -> bool {
    matches!(node, Node::Leaf(entries) if entries.len() < LEAF_MAX)
}

/// Removes a key that is there. Returns how many items the node has left.
fn remove(node: &mut Node, key: &[u8]) -> usize {
    match node {
        Node::Leaf(entries) => {
            if let Ok(at) = place_of(entries, key) {
                entries.remove(at);
                entries.shrink_to_fit();
            }
            entries.len()
        }
        Node::Branch(children) => {
            let at = child_of(children, key);
            let left = remove(Arc::make_mut(&mut children[at].node), key);
            if left == 0 {
                children.remove(at);
            } else {
                // A pair of which one is small becomes one node, if that leaves room in it.
                let pair = at.min(children.len().saturating_sub(2));
                merge(children, pair);
            }
            children.len()
        }
    }
}

/// Joins a child and the one behind it if they fill no more than three quarters of a node.
fn merge(children: &mut Vec<Child>, at: usize) {
    let [left, right, ..] = &mut children[at..] else { return };
    match (Arc::make_mut(&mut left.node), &*right.node) {
        (Node::Leaf(left), Node::Leaf(right)) if left.len() + right.len() <= LEAF_MAX * 3 / 4 => {
            left.reserve_exact(right.len());
            left.extend_from_slice(right);
        }
        (Node::Branch(left), Node::Branch(below)) if left.len() + below.len() <= BRANCH_MAX * 3 / 4 => {
            left.reserve_exact(below.len());
            // Of the second node's first child the key means something from now on.
            let first = right.first.clone();
            left.extend_from_slice(below);
            let moved = left.len() - below.len();
            left[moved].first = first;
        }
        _ => return,
    }
    children.remove(at + 1);
}

/// Entries by ascending key.
pub(super) struct Range<'a> {
    /// The children that are left of each branch on the way down.
    branches: Vec<slice::Iter<'a, Child>>,
    leaf: slice::Iter<'a, Entry>,
    end: Bound<&'a [u8]>,
    /// Whether the end is in this leaf.
    is_last: bool,
}

impl<'a> Range<'a> {
    /// Goes down to the leaf of the first entry from `start` on.
    fn descend(&mut self, mut node: &'a Node, start: Bound<&[u8]>) {
        loop {
            match node {
                Node::Branch(children) => {
                    let at = match start {
                        Bound::Included(key) | Bound::Excluded(key) => child_of(children, key),
                        Bound::Unbounded => 0,
                    };
                    let Some(child) = children.get(at) else { return };
                    self.branches.push(children[at + 1..].iter());
                    node = &child.node;
                }
                Node::Leaf(entries) => return self.enter(entries, start),
            }
        }
    }

    fn enter(&mut self, entries: &'a [Entry], start: Bound<&[u8]>) {
        let from = match start {
            Bound::Included(start) => entries.partition_point(|(key, _)| &**key < start),
            Bound::Excluded(start) => entries.partition_point(|(key, _)| &**key <= start),
            Bound::Unbounded => 0,
        };
        let is_before_end = |key: &[u8]| match self.end {
            Bound::Included(end) => key <= end,
            Bound::Excluded(end) => key < end,
            Bound::Unbounded => true,
        };
        let mut to = entries.len();
        if entries.last().is_some_and(|(key, _)| !is_before_end(key)) {
            to = entries.partition_point(|(key, _)| is_before_end(key));
            self.is_last = true;
        }
        self.leaf = entries[from.min(to)..to].iter();
    }
}

impl<'a> Iterator for Range<'a> {
    type Item = (&'a Key, &'a VersionRef);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some((key, version)) = self.leaf.next() {
                return Some((key, version));
            }
            if self.is_last {
                return None;
            }
            match self.branches.last_mut()?.next() {
                Some(child) => self.descend(&child.node, Bound::Unbounded),
                None => drop(self.branches.pop()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;
    use crate::{mvcc::Version, values::Value};

    fn key(number: u16) -> Key {
        Key::from(number.to_be_bytes().as_slice())
    }

    fn version(number: u16, revision: i64) -> VersionRef {
        VersionRef::new(Version::put(key(number), Value::EMPTY, 0, (revision, 0), None, None))
    }

    /// No node is empty or too large, all leaves are at one depth, and keys are where they are looked for.
    fn check(node: &Node, is_root: bool, from: Option<&Key>, to: Option<&Key>) -> usize {
        match node {
            Node::Leaf(entries) => {
                assert!(entries.len() <= LEAF_MAX && (is_root || !entries.is_empty()));
                assert!(entries.is_sorted_by(|one, other| one.0 < other.0));
                assert!(entries.iter().all(|(key, _)| from.is_none_or(|from| from <= key)));
                assert!(entries.iter().all(|(key, _)| to.is_none_or(|to| key < to)));
                1
            }
            Node::Branch(children) => {
                assert!(children.len() <= BRANCH_MAX && children.len() >= if is_root { 2 } else { 1 });
                let depths: Vec<_> = (0..children.len())
                    .map(|at| {
                        let from = if at == 0 { from } else { Some(&children[at].first) };
                        let to = children.get(at + 1).map_or(to, |next| Some(&next.first));
                        check(&children[at].node, false, from, to)
                    })
                    .collect();
                assert!(depths.windows(2).all(|pair| pair[0] == pair[1]));
                depths[0] + 1
            }
        }
    }

    fn compare(index: &Index, model: &BTreeMap<Key, i64>) {
        check(&index.root, true, None, None);
        assert_eq!(index.len(), model.len());
        let found = index.iter().map(|(key, version)| (key, version.mod_revision));
        assert!(found.eq(model.iter().map(|(key, revision)| (key, *revision))));
    }

    proptest! {
        #[test]
        fn it_is_a_sorted_map_and_its_clones_are_independent(
            steps in proptest::collection::vec((0..6u8, 0..1500u16, 1..200u16), 1..60)
        ) {
            let (mut index, mut model) = (Index::default(), BTreeMap::new());
            let mut kept: Option<(Index, BTreeMap<Key, i64>)> = None;
            for (revision, (kind, first, count)) in (1i64..).zip(steps) {
                for n in first..first + count {
                    // In order, in the opposite order, and in none.
                    let number = match kind {
                        0 => n,
                        1 => first + count - n,
                        _ => n.wrapping_mul(7919) % 2000,
                    };
                    match kind {
                        0..=3 => {
                            index.insert(key(number), version(number, revision));
                            model.insert(key(number), revision);
                        }
                        4 => {
                            index.remove(&key(number));
                            model.remove(&*key(number));
                        }
                        _ => {
                            let found = index.get_mut(&key(number));
                            prop_assert_eq!(found.is_some(), model.contains_key(&*key(number)));
                            if let Some(found) = found {
                                *found = version(number, revision);
                                model.insert(key(number), revision);
                            }
                        }
                    }
                }
                compare(&index, &model);
                let (start, end) = (key(first), key(first.saturating_add(count)));
                for bounds in [
                    (Bound::Included(&*start), Bound::Excluded(&*end)),
                    (Bound::Excluded(&*start), Bound::Included(&*end)),
                    (Bound::Unbounded, Bound::Excluded(&*start)),
                    (Bound::Included(&*end), Bound::Unbounded),
                    (Bound::Included(&*start), Bound::Included(&*start)),
                ] {
                    let expected = model.range::<[u8], _>(bounds).map(|(key, revision)| (key, *revision));
                    let found = index.range(bounds).map(|(key, version)| (key, version.mod_revision));
                    prop_assert!(found.eq(expected));
                    prop_assert_eq!(index.get(&start).map(|version| version.mod_revision), model.get(&*start).copied());
                }
                if let Some((index, model)) = &kept {
                    compare(index, model);
                }
                if revision % 5 == 0 {
                    kept = Some((index.clone(), model.clone()));
                }
            }
        }
    }

    /// How many leaves there are.
    fn leaves(index: &Index) -> usize {
        let mut nodes = vec![&*index.root];
        let mut leaves = 0;
        while let Some(node) = nodes.pop() {
            match node {
                Node::Leaf(entries) => {
                    assert_eq!(entries.capacity(), entries.len());
                    leaves += 1;
                }
                Node::Branch(children) => nodes.extend(children.iter().map(|child| &*child.node)),
            }
        }
        leaves
    }

    #[test]
    fn keys_in_order_fill_their_nodes() {
        let mut index = Index::default();
        for number in 0..10_000 {
            index.insert(key(number), version(number, 1));
        }
        assert_eq!(leaves(&index), 10_000 / LEAF_MAX);
    }

    #[test]
    fn keys_nearly_in_order_fill_more_than_half_of_them() {
        let mut index = Index::default();
        for window in 0..10 {
            for n in 0..1000u32 {
                let number = window * 1000 + (n * 389 % 1000) as u16;
                index.insert(key(number), version(number, 1));
            }
        }
        assert_eq!(index.len(), 10_000);
        assert!(leaves(&index) < 10_000 / (LEAF_MAX / 2), "{}", leaves(&index));
    }
}
