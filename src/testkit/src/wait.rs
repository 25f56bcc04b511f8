//! Waiting for a condition instead of for a time.

use std::{future::Future, time::Duration};

use anyhow::{Result, bail};
use tokio::time::{Instant, sleep, timeout_at};

/// Time between two looks at a condition: short at first, as most things awaited in tests take milliseconds.
const POLL_MIN: Duration = Duration::from_millis(5);
const POLL_MAX: Duration = Duration::from_millis(100);

/// Asks `condition` until it answers `Some`, and returns that.
///
/// `what` names the awaited state, as in `"member 2 is leader"`; the error repeats it.
///
/// # Errors
///
/// When `limit` has passed; a condition that hangs is cut off at the limit too.
pub async fn wait_until<T, Condition, Answer>(
    what: &str,
    limit: Duration,
    mut condition: Condition,
) -> Result<T>
where
    Condition: FnMut() -> Answer,
    Answer: Future<Output = Option<T>>,
{
    let deadline = Instant::now() + limit;
    let mut pause = POLL_MIN;
    let mut looks = 0;
    loop {
        match timeout_at(deadline, condition()).await {
            Ok(Some(answer)) => return Ok(answer),
            Ok(None) if Instant::now() < deadline => looks += 1,
            _ => bail!("waited {limit:?} in vain until {what} ({looks} looks)"),
        }
        sleep(pause.min(deadline - Instant::now())).await;
        pause = (pause * 2).min(POLL_MAX);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn returns_what_the_condition_answers() {
        let mut looks = 0;
        let answer = wait_until("the third look", Duration::from_secs(5), || {
            looks += 1;
            let look = looks;
            async move { (look == 3).then_some(look) }
        });
        assert_eq!(answer.await.unwrap(), 3);
    }

    #[tokio::test]
    async fn gives_up_at_the_limit_and_names_what_it_waited_for() {
        let never = wait_until("pigs fly", Duration::from_millis(30), || async { None::<()> });
        assert!(never.await.unwrap_err().to_string().contains("until pigs fly"));
        let hangs = wait_until("it answers", Duration::from_millis(30), std::future::pending::<Option<()>>);
        assert!(hangs.await.unwrap_err().to_string().contains("until it answers"));
    }
}
