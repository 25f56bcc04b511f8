//! Waiting for what a process in a cluster cannot start without: there everything starts at once, and in any order.

use std::time::Duration;

use anyhow::Result;

/// First and longest pause between two attempts.
const PAUSE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// Tries until it succeeds, for ever. `told` hears why each attempt failed; the log does when the reason is another one.
pub async fn until_it_succeeds<T>(told: impl Fn(&str), mut attempt: impl AsyncFnMut() -> Result<T>) -> T {
    let mut pause = PAUSE.0;
    let mut last = String::new();
    loop {
        match attempt().await {
            Ok(value) => return value,
            Err(error) => {
                let why = format!("{error:#}");
                told(&why);
                if why != last {
                    tracing::info!("not ready yet: {why}");
                    last = why;
                }
            }
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
    }
}

#[cfg(test)]
mod tests {
    use parking_lot::Mutex;

    use super::*;

    #[tokio::test]
    async fn goes_on_until_it_succeeds() {
        let reasons = Mutex::new(Vec::new());
        let mut attempts = 0;
        let answer = until_it_succeeds(
            |why| reasons.lock().push(why.to_owned()),
            async || {
                attempts += 1;
                if attempts < 4 { Err(anyhow::anyhow!("attempt {attempts}")) } else { Ok(attempts) }
            },
        )
        .await;
        assert_eq!(answer, 4);
        assert_eq!(*reasons.lock(), ["attempt 1", "attempt 2", "attempt 3"]);
    }
}
