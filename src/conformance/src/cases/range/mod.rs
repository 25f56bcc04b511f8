//! Range.

mod bounds;
mod errors;
mod filter;
mod limit;
mod options;
mod revision;
mod sort;

use sharded_etcd_etcd_api::messages as pb;

use crate::{
    Suite,
    check::{Check, Ctx},
};

pub(super) fn add(suite: &mut Suite) {
    bounds::add(suite);
    limit::add(suite);
    sort::add(suite);
    filter::add(suite);
    revision::add(suite);
    options::add(suite);
    errors::add(suite);
}

/// Keys over all directories whose order differs by key, version, create revision, mod revision and value.
struct Store {
    /// In the order of keys, as the server must show them.
    kvs: Vec<pb::KeyValue>,
    /// The same before the last round of puts.
    before: Vec<pb::KeyValue>,
    /// The revision at which `before` was current.
    before_revision: i64,
}

/// Name, number of puts, and last value, in the order of creation.
const KEYS: [(&str, usize, &str); 5] =
    [("c/1", 3, "m"), ("a/2", 2, "z"), ("b/1", 6, "a"), ("a/1", 4, "q"), ("c/2", 5, "c")];
/// The order of the last puts.
const LAST: [usize; 5] = [1, 4, 0, 3, 2];

async fn store(c: &Ctx) -> Check<Store> {
    let mut kvs: Vec<pb::KeyValue> = Vec::new();
    for (name, _, _) in KEYS {
        let revision = c.put(name, "first").await?;
        kvs.push(pb::KeyValue {
            key: c.key(name),
            value: "first".into(),
            create_revision: revision,
            mod_revision: revision,
            version: 1,
            lease: 0,
        });
    }
    for (place, (name, puts, _)) in KEYS.into_iter().enumerate() {
        for version in 2..puts {
            let value = format!("v{version}-{place}");
            kvs[place].mod_revision = c.put(name, &value).await?;
            kvs[place].version += 1;
            kvs[place].value = value.into();
        }
    }
    let by_key = |mut kvs: Vec<pb::KeyValue>| {
        kvs.sort_by(|a, b| a.key.cmp(&b.key));
        kvs
    };
    let before = by_key(kvs.clone());
    let before_revision = kvs.iter().map(|kv| kv.mod_revision).max().unwrap_or_default();
    for place in LAST {
        let (name, _, value) = KEYS[place];
        kvs[place].mod_revision = c.put(name, value).await?;
        kvs[place].version += 1;
        kvs[place].value = value.into();
    }
    Ok(Store { kvs: by_key(kvs), before, before_revision })
}
