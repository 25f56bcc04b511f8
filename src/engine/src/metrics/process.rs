//! What the system says about this process, under the names that Prometheus' own libraries give it.

use std::{fs, time::Duration};

/// The kernel tells times in hundredths of a second, whatever it counts in (USER_HZ in proc_pid_stat(5)).
const TICKS_PER_SECOND: f64 = 100.0;

/// Figures of the process; what cannot be found out is left out.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Process {
    pub(super) cpu_seconds: Option<f64>,
    pub(super) resident_bytes: Option<u64>,
    pub(super) virtual_bytes: Option<u64>,
    pub(super) open_files: Option<u64>,
    /// Since the epoch.
    pub(super) started: Option<Duration>,
}

impl Process {
    pub(super) fn read() -> Self {
        let read = |path: &str| fs::read_to_string(path).unwrap_or_default();
        Self {
            open_files: fs::read_dir("/proc/self/fd").ok().map(|files| files.count() as u64),
            ..Self::of(&read("/proc/self/stat"), &read("/proc/self/status"), &read("/proc/stat"))
        }
    }

    fn of(stat: &str, status: &str, system: &str) -> Self {
        // The name before these is in parentheses and may hold anything. The first of them is field 3.
        let fields: Vec<&str> =
            stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace().collect();
        let ticks = |field: usize| fields.get(field - 3)?.parse::<f64>().ok();
        let line = |text: &str, name: &str| -> Option<u64> {
            let line = text.lines().find_map(|line| line.strip_prefix(name))?;
            line.split_whitespace().next()?.parse().ok()
        };
        let kib = |name| line(status, name).map(|kib| kib * 1024);
        let booted = line(system, "btime").map(Duration::from_secs);
        Self {
            cpu_seconds: ticks(14).zip(ticks(15)).map(|(user, kernel)| (user + kernel) / TICKS_PER_SECOND),
            resident_bytes: kib("VmRSS:"),
            virtual_bytes: kib("VmSize:"),
            open_files: None,
            started: booted
                .zip(ticks(22))
                .map(|(booted, ticks)| booted + Duration::from_secs_f64(ticks / TICKS_PER_SECOND)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_are_read() {
        let stat = "4711 (a ) b) S 1 1 1 0 -1 4194304 100 0 0 0 250 150 0 0 20 0 9 0 1000 4096 7 1";
        let status = "Name:\ta\nVmSize:\t    2048 kB\nVmRSS:\t    1024 kB\n";
        let expected = Process {
            cpu_seconds: Some(4.0),
            resident_bytes: Some(1 << 20),
            virtual_bytes: Some(2 << 20),
            open_files: None,
            started: Some(Duration::from_secs(1010)),
        };
        assert_eq!(Process::of(stat, status, "cpu 1\nbtime 1000\n"), expected);
        assert_eq!(Process::of("", "", ""), Process::default());
    }
}
