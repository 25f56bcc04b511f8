//! Progress of moves, on standard error: bars on a terminal, lines otherwise.

use std::{collections::BTreeMap, sync::Arc, time::Duration};

use indicatif::{ProgressBar, ProgressStyle};
use sharded_etcd_core::keyspace::ShardIx;
use sharded_etcd_line::Line;
use sharded_etcd_manager::{MoveProgress, Progress};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use crate::logs;

/// How often bars are drawn anew.
const REDRAW: Duration = Duration::from_millis(100);
/// How often a line is written for a move that goes on.
const REPEAT: Duration = Duration::from_secs(5);

/// Shows moves until `shutdown`.
pub async fn show(progress: Arc<Progress>, line: Arc<Line>, shutdown: CancellationToken) {
    let mut changed = progress.subscribe();
    let mut display =
        if logs::is_terminal() { Display::Bars(BTreeMap::new()) } else { Display::Lines(BTreeMap::new()) };
    let mut ticks = interval(REDRAW);
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            () = shutdown.cancelled() => return display.clear(),
            changed = changed.changed() => if changed.is_err() { return display.clear() },
        }
        // A busy move changes thousands of times a second.
        tokio::select! {
            () = shutdown.cancelled() => return display.clear(),
            _ = ticks.tick() => {}
        }
        changed.mark_unchanged();
        display.update(&progress.moves(), |ix| name(&line, ix));
    }
}

fn name(line: &Line, shard: ShardIx) -> String {
    line.with_fold(|fold| fold.shard(shard).map(|s| s.name.clone()))
        .unwrap_or_else(|| format!("shard number {}", shard.0))
}

enum Display {
    Bars(BTreeMap<String, ProgressBar>),
    /// When a line was last written for a move, and its phase then.
    Lines(BTreeMap<String, (Instant, &'static str)>),
}

impl Display {
    fn update(&mut self, moves: &[MoveProgress], name: impl Fn(ShardIx) -> String) {
        let is_under_way = |id: &String| moves.iter().any(|m| m.id == *id);
        match self {
            Self::Bars(bars) => {
                bars.retain(|id, bar| {
                    let keep = is_under_way(id);
                    if !keep {
                        bar.finish_and_clear();
                    }
                    keep
                });
                for m in moves {
                    let bar = bars.entry(m.id.clone()).or_insert_with(|| {
                        let bar = logs::bars().add(ProgressBar::new(100).with_style(style()));
                        bar.set_prefix(format!("{} {} → {}", m.range, name(m.from), name(m.to)));
                        bar
                    });
                    bar.set_position(m.percent());
                    bar.set_message(if m.message.is_empty() {
                        m.phase.to_owned()
                    } else {
                        format!("{}: {}", m.phase, m.message)
                    });
                }
            }
            Self::Lines(lines) => {
                lines.retain(|id, _| is_under_way(id));
                for m in moves {
                    let now = Instant::now();
                    let is_due = match lines.get(&m.id) {
                        None => true,
                        Some((last, _)) => now.duration_since(*last) >= REPEAT,
                    };
                    if is_due {
                        lines.insert(m.id.clone(), (now, m.phase));
                        tracing::info!(
                            "moving {} from {} to {}: {}, {} %, {} of {} keys: {}",
                            m.range,
                            name(m.from),
                            name(m.to),
                            m.phase,
                            m.percent(),
                            m.keys_done,
                            m.keys_total,
                            m.reason
                        );
                    }
                }
            }
        }
    }

    fn clear(&mut self) {
        if let Self::Bars(bars) = self {
            bars.values().for_each(ProgressBar::finish_and_clear);
        }
    }
}

fn style() -> ProgressStyle {
    ProgressStyle::with_template("{prefix} [{bar:25}] {percent:>3} % {msg}")
        .unwrap_or_else(|_| ProgressStyle::default_bar())
        .progress_chars("=> ")
}
