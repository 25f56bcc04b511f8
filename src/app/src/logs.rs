//! Logs, on standard error, which they share with progress bars.

use std::{
    io::{self, IsTerminal, Write},
    sync::LazyLock,
};

use indicatif::MultiProgress;
use tracing_subscriber::{EnvFilter, fmt};

use crate::cli::{LogArgs, LogFormat};

/// What is logged at each verbosity, without RUST_LOG. The steps of each move are for those who look for them.
const FILTERS: [&str; 3] = [
    "warn,sharded_etcd=info,sharded_etcd_proxy=info,sharded_etcd_manager=info,sharded_etcd_line=info,\
     sharded_etcd_shard=info,sharded_etcd_engine=info,sharded_etcd_operator=info,\
     sharded_etcd_manager::mover=warn,sharded_etcd_manager::reshape=warn",
    "info,sharded_etcd=debug,sharded_etcd_proxy=debug,sharded_etcd_manager=debug,sharded_etcd_line=debug,\
     sharded_etcd_shard=debug,sharded_etcd_engine=debug,sharded_etcd_operator=debug",
    "debug,sharded_etcd=trace,sharded_etcd_proxy=trace,sharded_etcd_manager=trace,sharded_etcd_line=trace,\
     sharded_etcd_shard=trace,sharded_etcd_engine=trace,sharded_etcd_operator=trace",
];

static BARS: LazyLock<MultiProgress> = LazyLock::new(MultiProgress::new);

/// The progress bars below the logs.
pub fn bars() -> &'static MultiProgress {
    &BARS
}

/// Whether somebody looks at standard error.
pub fn is_terminal() -> bool {
    io::stderr().is_terminal()
}

/// Starts logging.
pub fn start(args: &LogArgs) {
    let default = FILTERS[usize::from(args.verbose).min(FILTERS.len() - 1)];
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(default));
    let logs = fmt().with_env_filter(filter).with_writer(|| AboveBars);
    match args.log_format {
        LogFormat::Json => logs.json().flatten_event(true).init(),
        LogFormat::Text => logs.with_target(false).with_ansi(is_terminal()).init(),
    }
}

/// Standard error, with the bars taken away while a line is written.
struct AboveBars;

impl Write for AboveBars {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // A log line is written in one piece.
        self.write_all(bytes)?;
        Ok(bytes.len())
    }

    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        if is_terminal() {
            BARS.suspend(|| io::stderr().write_all(bytes))
        } else {
            io::stderr().write_all(bytes)
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
