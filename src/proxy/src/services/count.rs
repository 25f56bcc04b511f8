//! Counting answers.

use tonic::{Response, Status};

use crate::{context::Context, metrics::Call};

/// Counts an answer by method and code, and wraps it.
pub(super) fn count<T>(
    ctx: &Context,
    method: &'static str,
    result: Result<T, Status>,
) -> Result<Response<T>, Status> {
    let code = result.as_ref().err().map_or("ok", |status| status.code().description());
    ctx.metrics.requests.get_or_create(&Call { method, code }).inc();
    result.map(Response::new)
}
