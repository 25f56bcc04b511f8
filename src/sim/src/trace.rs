//! What happened, in order: a hash over all of it, and its last lines for people.

use std::{collections::VecDeque, fmt::Write};

use parking_lot::Mutex;
use sharded_etcd_core::hash::Fnv1a;
use tokio::time::Instant;

/// Lines that are kept to show beside a failure.
const KEPT_MAX: usize = 400;

/// The trace of one run.
#[derive(Debug)]
pub struct Trace {
    begun: Instant,
    print: bool,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    hash: Fnv1a,
    lines: u64,
    kept: VecDeque<String>,
}

impl Trace {
    /// An empty trace that begins now; `print` shows each line at once.
    pub fn new(print: bool) -> Self {
        let state = State { hash: Fnv1a::default(), lines: 0, kept: VecDeque::with_capacity(KEPT_MAX) };
        Self { begun: Instant::now(), print, state: Mutex::new(state) }
    }

    /// Adds a line.
    pub fn line(&self, what: std::fmt::Arguments<'_>) {
        let mut state = self.state.lock();
        let state = &mut *state;
        let mut line = if state.kept.len() == KEPT_MAX {
            state.kept.pop_front().unwrap_or_default()
        } else {
            String::new()
        };
        line.clear();
        let us = self.begun.elapsed().as_micros();
        // Writing to a string does not fail.
        let _ = write!(line, "{:>6}.{:03} ", us / 1000, us % 1000);
        let _ = line.write_fmt(what);
        state.hash.add(line.as_bytes());
        state.lines += 1;
        if self.print {
            #[allow(clippy::print_stderr)] // a person asked to see it
            {
                eprintln!("{line}");
            }
        }
        state.kept.push_back(line);
    }

    /// A hash over all lines, and their number.
    pub fn digest(&self) -> (u64, u64) {
        let state = self.state.lock();
        (state.hash.value(), state.lines)
    }

    /// The last lines.
    pub fn last(&self) -> Vec<String> {
        self.state.lock().kept.iter().cloned().collect()
    }
}

/// Adds a line to a world's trace.
#[macro_export]
macro_rules! trace {
    ($world:expr, $($what:tt)*) => {
        $world.trace.line(format_args!($($what)*))
    };
}
