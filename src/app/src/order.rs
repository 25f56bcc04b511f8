//! `move`, `split`, `merge`, `abort`, `approve`: what a person asks the shard manager to do by hand.

use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use bytes::Bytes;
use clap::Args;
use sharded_etcd_core::{
    keyspace::{KeyRange, prefix_end},
    orders::{Order, OrderRecord, OrderState},
};
use tokio::time::{Instant, sleep};

use crate::{
    cli::{OutputFormat, QueryArgs, duration},
    query::{Admin, decode},
};

/// How often the order is looked at while it is waited for.
const LOOK: Duration = Duration::from_millis(250);
/// After this time without a shard manager that takes an order up, the person is told.
const TAKEN_UP_MAX: Duration = Duration::from_secs(10);

/// Keys are written as they are, and other bytes as `status` shows them: `\x00`, `\\`.
const KEYS: &str = "Keys are text; other bytes are written as `status` shows them: \\x00, \\n, \\\\";

/// Arguments of `move`.
#[derive(Debug, Clone, Args)]
#[command(after_help = KEYS)]
pub struct MoveArgs {
    /// The first key; "" for the first of all.
    pub start: String,
    /// The first key behind the range; "" for none.
    #[arg(required_unless_present = "prefix", conflicts_with = "prefix")]
    pub end: Option<String>,
    /// START is a prefix: all keys that begin with it move.
    #[arg(long, env = "SHARDED_ETCD_PREFIX")]
    pub prefix: bool,
    /// The shard that takes them, such as shard-1.
    #[arg(long, value_name = "SHARD", env = "SHARDED_ETCD_TO")]
    pub to: String,
    /// Whom to ask, and how long to wait.
    #[command(flatten)]
    pub order: OrderArgs,
}

/// Arguments of `split` and `merge`.
#[derive(Debug, Clone, Args)]
#[command(after_help = KEYS)]
pub struct BoundaryArgs {
    /// The first key of the right one of both ranges.
    pub key: String,
    /// Whom to ask, and how long to wait.
    #[command(flatten)]
    pub order: OrderArgs,
}

/// Arguments of `abort`.
#[derive(Debug, Clone, Args)]
#[command(after_help = KEYS)]
pub struct AbortArgs {
    /// The first key; "" for the first of all.
    pub start: String,
    /// The first key behind the range; "" for none.
    pub end: String,
    /// Whom to ask, and how long to wait.
    #[command(flatten)]
    pub order: OrderArgs,
}

/// Arguments of `approve`.
#[derive(Debug, Clone, Args)]
pub struct ApproveArgs {
    /// The plan, as `status` names it.
    pub plan: String,
    /// Whom to ask, and how long to wait.
    #[command(flatten)]
    pub order: OrderArgs,
}

/// Whom to ask, and how long to wait.
#[derive(Debug, Clone, Args)]
pub struct OrderArgs {
    /// How long to wait until it is done; after that the order stands, and the shard manager goes on with it.
    #[arg(
        long,
        value_name = "DURATION",
        env = "SHARDED_ETCD_WAIT",
        default_value = "10m",
        value_parser = duration
    )]
    pub wait: Duration,
    /// The running topology and the form of the answer.
    #[command(flatten)]
    pub query: QueryArgs,
}

impl MoveArgs {
    /// The order.
    ///
    /// # Errors
    /// If a key is not readable.
    pub fn order(&self) -> Result<Order> {
        let start = key(&self.start)?;
        let range = match &self.end {
            Some(end) => KeyRange::new(start, key(end)?),
            None => KeyRange::new(start.clone(), prefix_end(&start)),
        };
        Ok(Order::Move { range, to: self.to.clone() })
    }
}

impl AbortArgs {
    /// The order.
    ///
    /// # Errors
    /// If a key is not readable.
    pub fn order(&self) -> Result<Order> {
        Ok(Order::Abort { range: KeyRange::new(key(&self.start)?, key(&self.end)?) })
    }
}

impl BoundaryArgs {
    /// The order to split.
    ///
    /// # Errors
    /// If the key is not readable.
    pub fn split(&self) -> Result<Order> {
        Ok(Order::Split { at: key(&self.key)? })
    }

    /// The order to merge.
    ///
    /// # Errors
    /// If the key is not readable.
    pub fn merge(&self) -> Result<Order> {
        Ok(Order::Merge { at: key(&self.key)? })
    }
}

/// Gives an order, and waits for it; `tell` is told whatever changes meanwhile. The text to print in the end.
///
/// # Errors
/// If no topology answers, the order is refused or taken back, or it is not done in time.
pub async fn run(order: Order, args: &OrderArgs, mut tell: impl FnMut(&str)) -> Result<String> {
    let mut admin = Admin::connect(&args.query.endpoint).await?;
    let json = serde_json::to_string(&order).context("cannot write the order as JSON")?;
    let id = admin.order(json).await?;
    let begun = Instant::now();
    let mut eta = TimeLeft::default();
    let mut told = String::new();
    let mut alone = false;
    loop {
        let json = admin.order_state(&id).await?;
        let record: OrderRecord = decode(&json, "order")?;
        match record.state {
            OrderState::Done if args.query.output == OutputFormat::Json => return Ok(json),
            OrderState::Done => return Ok(format!("{order}: done, {}", record.message)),
            OrderState::Failed => bail!("cannot {order}: {}", record.message),
            OrderState::Waiting | OrderState::Running => {}
        }
        if begun.elapsed() >= args.wait {
            let so_far = if record.message.is_empty() { "not begun yet" } else { record.message.as_str() };
            if args.wait.is_zero() {
                return Ok(if args.query.output == OutputFormat::Json {
                    json
                } else {
                    format!("{order}: asked for")
                });
            }
            bail!(
                "{order} is not done after {} s: {so_far}; the order stands, and `status` shows how far it is",
                begun.elapsed().as_secs()
            );
        }
        if record.state == OrderState::Waiting && !alone && begun.elapsed() > TAKEN_UP_MAX {
            alone = true;
            tell("no shard manager has taken the order up yet: `status` shows whether one leads");
        }
        if record.message != told && !record.message.is_empty() {
            told.clone_from(&record.message);
            match eta.after(&record.message, begun.elapsed()) {
                Some(left) => tell(&format!("{told}, about {} s left", left.as_secs().max(1))),
                None => tell(&told),
            }
        }
        sleep(LOOK).await;
    }
}

/// Guesses from percentages when the rest is done.
#[derive(Debug, Default)]
struct TimeLeft {
    first: Option<(u64, Duration)>,
    last: u64,
}

impl TimeLeft {
    /// The time left after a message with a percentage; none for the first, nor where the percentages began anew.
    fn after(&mut self, message: &str, at: Duration) -> Option<Duration> {
        let (before, _) = message.split_once(" %")?;
        let percent: u64 = before.rsplit(' ').next()?.parse().ok()?;
        let goes_on = self.last <= percent;
        self.last = percent;
        let (first, since) = match self.first {
            Some(first) if goes_on => first,
            _ => {
                self.first = Some((percent, at));
                return None;
            }
        };
        let done = u32::try_from(percent - first).ok().filter(|done| *done > 0)?;
        let rest = u32::try_from(100_u64.saturating_sub(percent)).ok()?;
        Some((at - since) * rest / done)
    }
}

/// The bytes of a key on the command line, in the notation in which `status` shows them.
fn key(text: &str) -> Result<Bytes> {
    let wrong = |what: &str| {
        anyhow!("the key {text:?} has {what}: write \\xNN, \\n, \\r, \\t, \\0, \\', \\\" or \\\\")
    };
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'\\' {
            bytes.push(byte);
            continue;
        }
        bytes.push(match rest.next() {
            Some(b'n') => b'\n',
            Some(b'r') => b'\r',
            Some(b't') => b'\t',
            Some(b'0') => 0,
            Some(quoted @ (b'\\' | b'\'' | b'"')) => quoted,
            Some(b'x') => {
                let mut digit = || {
                    rest.next().and_then(|d| char::from(d).to_digit(16)).and_then(|d| u8::try_from(d).ok())
                };
                let (high, low) = (digit(), digit());
                high.zip(low)
                    .map(|(high, low)| high << 4 | low)
                    .ok_or_else(|| wrong("a \\x without two digits"))?
            }
            _ => return Err(wrong("a \\ that begins nothing")),
        });
    }
    Ok(bytes.into())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_read_as_status_shows_them() {
        for bytes in
            [b"/registry/pods/".as_ref(), b"", b"a b\"'\\", &[0, 1, 0x7f, 0x80, 0xff, b'\n'], "ä".as_bytes()]
        {
            assert_eq!(key(&bytes.escape_ascii().to_string()).unwrap(), bytes);
        }
        assert_eq!(key("ä").unwrap(), "ä".as_bytes());
        for wrong in ["\\", "\\q", "\\x1", "\\xg0"] {
            assert!(key(wrong).unwrap_err().to_string().contains("write \\xNN"), "{wrong}");
        }
    }

    #[test]
    fn time_left() {
        let mut eta = TimeLeft::default();
        let at = Duration::from_secs;
        assert_eq!(eta.after("the move is under way: copy 10 %", at(5)), None);
        assert_eq!(eta.after("the move is under way: copy 10 %", at(6)), None);
        assert_eq!(eta.after("the move is under way: copy 60 %", at(10)), Some(at(4)));
        assert_eq!(eta.after("waits", at(11)), None);
        assert_eq!(eta.after("the next one: copy 20 %", at(12)), None, "another move begins anew");
        assert_eq!(eta.after("the next one: copy 60 %", at(14)), Some(at(2)));
    }
}
