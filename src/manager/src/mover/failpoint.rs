//! Places at which tests stop an executor, as a killed process would stop.

use std::{fmt, sync::Arc};

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

/// Asked at every [`Point`]; `None` in production.
#[derive(Clone, Default)]
pub struct Failpoints(Option<Arc<dyn Fn(Point) -> Proceed + Send + Sync>>);

impl Failpoints {
    /// Failpoints that ask `hook`.
    pub fn new(hook: impl Fn(Point) -> Proceed + Send + Sync + 'static) -> Self {
        Self(Some(Arc::new(hook)))
    }

    pub(crate) fn before(&self, step: &'static str) -> Result<()> {
        self.at(Point { step, when: When::Before })
    }

    pub(crate) fn after(&self, step: &'static str) -> Result<()> {
        self.at(Point { step, when: When::After })
    }

    fn at(&self, point: Point) -> Result<()> {
        match &self.0 {
            Some(hook) if hook(point) == Proceed::Die => Err(ManagerError::Failpoint(point.to_string())),
            _ => Ok(()),
        }
    }
}

impl fmt::Debug for Failpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_some() { "Failpoints(on)" } else { "Failpoints(off)" })
    }
}
