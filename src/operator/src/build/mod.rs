//! Step 3: the objects, as they should be. Pure, and cannot fail.

use crate::{
    model::{Desired, Observed},
    validate::Validated,
};

/// What the cluster should look like.
pub fn build(validated: &Validated, observed: &Observed) -> Desired {
    let _ = (validated, observed);
    Desired::default()
}
