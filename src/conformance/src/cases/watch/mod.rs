//! Watch (server/etcdserver/api/v3rpc/watch.go).

mod compacted;
mod control;
mod events;
mod history;
mod progress;

use crate::Suite;

pub(super) fn add(suite: &mut Suite) {
    control::add(suite);
    events::add(suite);
    history::add(suite);
    progress::add(suite);
    compacted::add(suite);
}
