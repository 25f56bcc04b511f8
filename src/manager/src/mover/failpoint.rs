//! Places at which tests stop an executor, as a killed process would stop, or hold it.

use std::{fmt, path::Path, sync::Arc, time::Duration};

use tokio::time::Instant;

use crate::{ManagerError, error::Result};

/// A place between two steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Point {
    /// Name of the step: an effect's name, or `copy`, `tail`, `verify`, `drain`, `purge`.
    pub step: &'static str,
    /// Before the step is sent, or after it succeeded.
    pub when: When,
}

/// Before or after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum When {
    /// Before it is sent.
    Before,
    /// After it succeeded.
    After,
}

impl fmt::Display for Point {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let when = match self.when {
            When::Before => "before",
            When::After => "after",
        };
        write!(f, "{when} {}", self.step)
    }
}

/// What a failpoint answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proceed {
    /// Go on.
    Go,
    /// Stop here as if the process had been killed.
    Die,
}

/// What happens at every [`Point`]; nothing in production.
#[derive(Clone, Default)]
pub struct Failpoints {
    hook: Option<Arc<dyn Fn(Point) -> Proceed + Send + Sync>>,
    gates: Option<Arc<Path>>,
}

/// Time between two looks at a gate, and how long one stays shut at most.
const GATE_POLL: Duration = Duration::from_millis(2);
const GATE_MAX: Duration = Duration::from_secs(60);

impl Failpoints {
    /// Failpoints that ask `hook`.
    pub fn new(hook: impl Fn(Point) -> Proceed + Send + Sync + 'static) -> Self {
        Self { hook: Some(Arc::new(hook)), gates: None }
    }

    /// Gates in a folder, for tests of whole processes: while there is a file named after a point (`before close`), whoever
    /// comes to the point renames it to `at before close`, and waits until that file is gone; a minute at most.
    pub fn gates(folder: &Path) -> Self {
        Self { hook: None, gates: Some(folder.into()) }
    }

    pub(crate) async fn before(&self, step: &'static str) -> Result<()> {
        self.at(Point { step, when: When::Before }).await
    }

    pub(crate) async fn after(&self, step: &'static str) -> Result<()> {
        self.at(Point { step, when: When::After }).await
    }

    async fn at(&self, point: Point) -> Result<()> {
        if let Some(folder) = &self.gates {
            let reached = folder.join(format!("at {point}"));
            if std::fs::rename(folder.join(point.to_string()), &reached).is_ok() {
                let since = Instant::now();
                while reached.exists() && since.elapsed() < GATE_MAX {
                    tokio::time::sleep(GATE_POLL).await;
                }
            }
        }
        match &self.hook {
            Some(hook) if hook(point) == Proceed::Die => Err(ManagerError::Failpoint(point.to_string())),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Failpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let on = self.hook.is_some() || self.gates.is_some();
        f.write_str(if on { "Failpoints(on)" } else { "Failpoints(off)" })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_gate_holds_who_comes_to_it_until_it_is_opened() {
        let folder = tempfile::tempdir().unwrap();
        let points = Failpoints::gates(folder.path());
        points.before("close").await.unwrap();
        std::fs::write(folder.path().join("before close"), "").unwrap();
        points.after("close").await.unwrap();
        let held = tokio::spawn(async move { points.before("close").await });
        let reached = folder.path().join("at before close");
        while !reached.exists() {
            tokio::task::yield_now().await;
        }
        assert!(!held.is_finished());
        std::fs::remove_file(reached).unwrap();
        held.await.unwrap().unwrap();
    }
}
