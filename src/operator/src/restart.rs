//! Which member to restart, so that it runs with the StatefulSet's newest template. Pure.

use crate::{
    model::{Deletion, Observed},
    validate::Validated,
};

/// The one pod to delete now, if any.
pub fn restart(validated: &Validated, observed: &Observed) -> Option<Deletion> {
    let _ = (validated, observed);
    None
}
