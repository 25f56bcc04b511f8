//! An answer in parts, each made when the client has taken the one before.

use futures::{
    StreamExt,
    future::ready,
    stream::{BoxStream, once, try_unfold},
};

/// Streams what `step` makes of one state after the other, until it returns no next one.
///
/// # Errors
/// That of the first part, so that it is one of the call; those of later ones end the stream.
pub async fn in_parts<S, T, E, F>(
    first: S,
    step: impl Fn(S) -> F + Send + 'static,
) -> Result<BoxStream<'static, Result<T, E>>, E>
where
    S: Send + 'static,
    T: Send + 'static,
    E: Send + 'static,
    F: Future<Output = Result<(T, Option<S>), E>> + Send + 'static,
{
    let (part, rest) = step(first).await?;
    let rest = try_unfold(rest, move |rest| {
        let next = rest.map(&step);
        async move {
            match next {
                Some(next) => next.await.map(Some),
                None => Ok(None),
            }
        }
    });
    Ok(once(ready(Ok(part))).chain(rest).boxed())
}
