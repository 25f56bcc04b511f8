//! The command line: every flag is an environment variable too.

use std::{net::SocketAddr, path::PathBuf, time::Duration};

use clap::{Args, CommandFactory, FromArgMatches, Parser, Subcommand, ValueEnum, error::ErrorKind};
use sharded_etcd_crd::units::TimeSpan;
use sharded_etcd_proxy::context::{Limits, PROGRESS_INTERVAL_MIN};

use crate::{
    etcd_flags,
    order::{AbortArgs, ApproveArgs, BoundaryArgs, MoveArgs},
};

/// Where a topology of this machine is served, and where `status`, `plan` and the orders by hand look for it.
pub const DEFAULT_ENDPOINT: &str = "127.0.0.1:2379";

/// What every command ends with; part of the interface, as scripts rely on it.
const EXIT_CODES: &str = "Exit codes: 0 done (plan: nothing to do), 1 failed, 2 plan: there are changes, \
                          64 the command line is wrong";

/// One etcd endpoint over several etcds.
#[derive(Debug, Parser)]
#[command(name = "sharded-etcd", version = crate::version::LONG, after_help = EXIT_CODES, propagate_version = true)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
    /// How logs are written.
    #[command(flatten)]
    pub log: LogArgs,
}

/// How logs are written; they go to standard error.
#[derive(Debug, Clone, Args)]
pub struct LogArgs {
    /// Log more: -v debug, -vv trace. RUST_LOG, where set, decides instead.
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    pub verbose: u8,
    /// Form of the log.
    #[arg(long, global = true, value_enum, default_value_t = LogFormat::Text, env = "SHARDED_ETCD_LOG_FORMAT")]
    pub log_format: LogFormat,
}

/// Form of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// Lines for people.
    Text,
    /// One JSON object a line.
    Json,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Runs a topology on this machine: its shards, a proxy and a shard manager, with data on disk.
    Up(UpArgs),
    /// Runs one proxy over the shards that a routing file names.
    Proxy(ProxyArgs),
    /// Runs one shard manager over the shards that a routing file names.
    ShardManager(ShardManagerArgs),
    /// Runs topologies in a Kubernetes cluster: reconciles ShardedEtcd resources.
    Operator(OperatorArgs),
    /// Looks at an etcd member's volume and refuses one that etcd must not start on.
    MemberGuard(MemberGuardArgs),
    /// Runs the embedded engine alone: one durable etcd, without proxy or shards.
    Engine(EngineArgs),
    /// Shows shards, ranges with their owners, moves and health of a running topology.
    Status(StatusArgs),
    /// Shows what a file would change in a running topology; changes nothing.
    Plan(PlanArgs),
    /// Moves all keys of a range to a shard, cutting it out where need be.
    Move(MoveArgs),
    /// Parts the range that a key lies in: the right one begins with the key.
    Split(BoundaryArgs),
    /// Puts the range that begins with a key together with the one before it.
    Merge(BoundaryArgs),
    /// Takes back the moves of a range that are under way, as long as the source still owns it.
    Abort(AbortArgs),
    /// Lets a plan be carried out that waits in mode Manual.
    Approve(ApproveArgs),
    /// Prints the version, the commit and the etcd API version.
    Version,
    /// Prints the custom resource definitions as YAML.
    Crd,
}

/// Arguments of `up`.
#[derive(Debug, Clone, Args)]
pub struct UpArgs {
    /// A file with one ShardedEtcd; saving it again re-balances.
    #[arg(short, long, value_name = "FILE", env = "SHARDED_ETCD_FILE", conflicts_with = "shards")]
    pub file: Option<PathBuf>,
    /// Number of shards, when there is no file [default: as before in this data folder, else 3].
    #[arg(long, value_name = "N", env = "SHARDED_ETCD_SHARDS")]
    pub shards: Option<i64>,
    /// Folder that holds all data; the next `up` goes on from it.
    #[arg(long, value_name = "DIR", env = "SHARDED_ETCD_DATA_DIR", default_value = "./sharded-etcd-data")]
    pub data_dir: PathBuf,
    /// Where clients connect to; port 0 picks a free one.
    #[command(flatten)]
    pub listen: ListenArgs,
    /// How watchers are served.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// What answers as a shard [default: as before in this data folder, else embedded].
    #[arg(long, value_enum, env = "SHARDED_ETCD_ENGINE")]
    pub engine: Option<EngineKind>,
    /// The etcd program for `--engine etcd`, 3.6 or newer [default: etcd on PATH].
    #[arg(long, value_name = "PATH", env = "SHARDED_ETCD_ETCD")]
    pub etcd: Option<PathBuf>,
}

/// Where a proxy listens, and what clients are told.
#[derive(Debug, Clone, Args)]
pub struct ListenArgs {
    /// Address to serve clients on; port 0 picks a free one.
    #[arg(long, value_name = "ADDR", env = "SHARDED_ETCD_LISTEN", default_value = DEFAULT_ENDPOINT)]
    pub listen: String,
    /// URL that clients are told to dial, may be repeated [default: the address listened on].
    #[arg(long, value_name = "URL", env = "SHARDED_ETCD_ADVERTISE_CLIENT_URLS", value_delimiter = ',')]
    pub advertise_client_urls: Vec<String>,
}

/// How watchers are served.
#[derive(Debug, Clone, Args)]
pub struct WatchArgs {
    /// How often watchers that asked for it are told their progress while nothing happens; 0s is the default, 100ms the
    /// least.
    #[arg(
        long,
        value_name = "DURATION",
        env = "SHARDED_ETCD_WATCH_PROGRESS_NOTIFY_INTERVAL",
        default_value = "10m",
        value_parser = progress_interval
    )]
    pub watch_progress_notify_interval: Duration,
}

/// What answers as a shard.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum EngineKind {
    /// The engine in this process.
    Embedded,
    /// A real etcd process for each shard.
    Etcd,
}

/// Arguments of `proxy`.
#[derive(Debug, Clone, Args)]
pub struct ProxyArgs {
    /// The routing file; it may be replaced while the proxy runs.
    #[arg(long, value_name = "FILE", env = "SHARDED_ETCD_ROUTING")]
    pub routing: PathBuf,
    /// Where clients connect to.
    #[command(flatten)]
    pub listen: ListenArgs,
    /// How watchers are served.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// Name of this proxy, unlike that of all others [default: the host's name and the port].
    #[arg(long, env = "SHARDED_ETCD_NAME")]
    pub name: Option<String>,
    /// How long it goes on serving once it is told to stop, while /readyz says that it is not ready any more.
    #[arg(long, value_name = "DURATION", env = "SHARDED_ETCD_DRAIN_DELAY", default_value = "0s", value_parser = duration)]
    pub drain_delay: Duration,
    /// How long requests under way may take after that; streams are ended at once.
    #[arg(long, value_name = "DURATION", env = "SHARDED_ETCD_DRAIN_MAX", default_value = "10s", value_parser = duration)]
    pub drain_max: Duration,
}

/// Arguments of `shard-manager`.
#[derive(Debug, Clone, Args)]
pub struct ShardManagerArgs {
    /// The routing file; it may be replaced while the shard manager runs.
    #[arg(long, value_name = "FILE", env = "SHARDED_ETCD_ROUTING")]
    pub routing: PathBuf,
    /// Address to serve `status` and `plan` on.
    #[arg(long, value_name = "ADDR", env = "SHARDED_ETCD_LISTEN", default_value = "127.0.0.1:2378")]
    pub listen: String,
    /// Name of this shard manager, unlike that of all others [default: the host's name and process id].
    #[arg(long, env = "SHARDED_ETCD_NAME")]
    pub name: Option<String>,
}

/// Arguments of `engine`. Its flags have etcd's names as well, and each may be set by `ETCD_<FLAG>` too.
/// As in etcd, the last of a flag that is given again counts.
#[derive(Debug, Clone, Args)]
#[command(args_override_self = true)]
pub struct EngineArgs {
    /// Something else than to serve.
    #[command(subcommand)]
    pub command: Option<EngineCommand>,
    /// Folder that holds all data [default: NAME.etcd].
    #[arg(long, value_name = "DIR", env = "SHARDED_ETCD_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Address to serve clients on, may be repeated; port 0 picks a free one.
    #[arg(
        long,
        alias = "listen-client-urls",
        value_name = "ADDR",
        env = "SHARDED_ETCD_LISTEN",
        default_value = DEFAULT_ENDPOINT,
        value_delimiter = ','
    )]
    pub listen: Vec<String>,
    /// URL that clients are told to dial, may be repeated [default: the address listened on].
    #[arg(long, value_name = "URL", env = "SHARDED_ETCD_ADVERTISE_CLIENT_URLS", value_delimiter = ',')]
    pub advertise_client_urls: Vec<String>,
    /// Name of the member.
    #[arg(long, env = "SHARDED_ETCD_NAME", default_value = "default")]
    pub name: String,
    /// Size of the data at which puts are refused; 0 for etcd's default, 2 GiB; negative for none.
    #[arg(
        long,
        value_name = "BYTES",
        env = "SHARDED_ETCD_QUOTA_BACKEND_BYTES",
        default_value_t = 0,
        allow_negative_numbers = true
    )]
    pub quota_backend_bytes: i64,
    /// What the retention of the history means.
    #[arg(long, value_enum, env = "SHARDED_ETCD_AUTO_COMPACTION_MODE", default_value = "periodic")]
    pub auto_compaction_mode: CompactionMode,
    /// How much history is kept: a time such as 30m, or hours, or revisions; 0 keeps all of it.
    #[arg(
        long,
        value_name = "RETENTION",
        env = "SHARDED_ETCD_AUTO_COMPACTION_RETENTION",
        default_value = "0"
    )]
    pub auto_compaction_retention: String,
    /// Compares or operations in one transaction at most.
    #[arg(long, value_name = "N", env = "SHARDED_ETCD_MAX_TXN_OPS", default_value_t = 128)]
    pub max_txn_ops: usize,
    /// Size of a request at most.
    #[arg(long, value_name = "BYTES", env = "SHARDED_ETCD_MAX_REQUEST_BYTES", default_value_t = 3 * 512 * 1024)]
    pub max_request_bytes: usize,
    /// Streams on one connection at most [default: no limit].
    #[arg(long, value_name = "N", env = "SHARDED_ETCD_MAX_CONCURRENT_STREAMS")]
    pub max_concurrent_streams: Option<u32>,
    /// How watchers are served.
    #[command(flatten)]
    pub watch: WatchArgs,
    /// How long a connection may be silent before it is asked whether anybody is there.
    #[arg(
        long,
        value_name = "DURATION",
        env = "SHARDED_ETCD_GRPC_KEEPALIVE_INTERVAL",
        default_value = "30s",
        value_parser = positive_duration
    )]
    pub grpc_keepalive_interval: Duration,
    /// How long the answer to that may take before the connection is closed.
    #[arg(
        long,
        value_name = "DURATION",
        env = "SHARDED_ETCD_GRPC_KEEPALIVE_TIMEOUT",
        default_value = "20s",
        value_parser = positive_duration
    )]
    pub grpc_keepalive_timeout: Duration,
}

/// What else there is to do with the engine's data.
#[derive(Debug, Clone, Subcommand)]
pub enum EngineCommand {
    /// Verifies every checksum of a data folder that no process uses, and says what is in it.
    Check {
        /// The folder.
        dir: PathBuf,
    },
    /// Makes a data folder from a snapshot, one of an engine or of an etcd.
    Restore(RestoreArgs),
}

/// Arguments of `engine restore`, with the names of `etcdutl snapshot restore`.
#[derive(Debug, Clone, Args)]
pub struct RestoreArgs {
    /// What `etcdctl snapshot save` wrote.
    pub snapshot: PathBuf,
    /// Folder to make; refused if there is anything in it [default: NAME.etcd].
    #[arg(long, value_name = "DIR", env = "SHARDED_ETCD_DATA_DIR")]
    pub data_dir: Option<PathBuf>,
    /// Name of the member.
    #[arg(long, env = "SHARDED_ETCD_NAME", default_value = "default")]
    pub name: String,
    /// Take a file without a checksum: a copy of `member/snap/db` of an etcd that does not run.
    #[arg(long)]
    pub skip_hash_check: bool,
    /// Go on so many revisions behind the newest one, so that clients never see a revision twice; needs
    /// --mark-compacted.
    #[arg(long, value_name = "N", default_value_t = 0, requires = "mark_compacted")]
    pub bump_revision: u64,
    /// Say that the revisions skipped are compacted; needs --bump-revision.
    #[arg(long, requires = "bump_revision")]
    pub mark_compacted: bool,
}

/// What the retention of the history means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CompactionMode {
    /// A time.
    Periodic,
    /// A number of revisions.
    Revision,
}

/// The command line, where the engine's flags may come from etcd's environment variables as well.
///
/// # Errors
/// If the command line or a variable is wrong, or help was asked for.
pub fn parse() -> Result<Cli, clap::Error> {
    let is_set = |name: &str| std::env::var_os(name).is_some();
    if let Some(refusal) = etcd_flags::refusal(std::env::args_os(), is_set) {
        return Err(Cli::command().error(ErrorKind::UnknownArgument, refusal));
    }
    let command = Cli::command().mut_subcommand("engine", |engine| with_etcd_variables(engine, is_set));
    Cli::from_arg_matches(&command.try_get_matches()?)
}

/// Has a flag read etcd's variable where that is set and ours is not.
fn with_etcd_variables(command: clap::Command, is_set: impl Fn(&str) -> bool) -> clap::Command {
    command.mut_args(|argument| {
        let ours = argument.get_env().map(|name| name.to_string_lossy().into_owned());
        if ours.is_none_or(|name| is_set(&name)) {
            return argument;
        }
        let mut flags: Vec<String> = argument.get_long().into_iter().map(str::to_owned).collect();
        flags.extend(argument.get_all_aliases().unwrap_or_default().into_iter().map(str::to_owned));
        let mut names = flags.iter().map(|flag| format!("ETCD_{}", flag.to_uppercase().replace('-', "_")));
        match names.find(|name| is_set(name)) {
            // A few bytes, once in a process: the command line library keeps names for good.
            Some(name) => argument.env(&*Box::leak(name.into_boxed_str())),
            None => argument,
        }
    })
}

/// Arguments of `operator`.
#[derive(Debug, Clone, Args)]
pub struct OperatorArgs {
    /// Image of this program, for proxies, shard managers and the guards of members' volumes.
    #[arg(long, env = "SHARDED_ETCD_IMAGE")]
    pub image: String,
    /// Repository of the etcd image, where a resource names none; the tag is its version
    /// [default: gcr.io/etcd-development/etcd].
    #[arg(long, value_name = "REPOSITORY", env = "SHARDED_ETCD_ETCD_IMAGE")]
    pub etcd_image: Option<String>,
    /// Namespace of the resources to look at [default: all].
    #[arg(long, value_name = "NAMESPACE", env = "SHARDED_ETCD_WATCH_NAMESPACE")]
    pub watch_namespace: Option<String>,
    /// Address to serve /livez, /readyz and /metrics on.
    #[arg(long, value_name = "ADDR", env = "SHARDED_ETCD_LISTEN", default_value = "0.0.0.0:8080")]
    pub listen: SocketAddr,
    /// Namespace of the Lease by which one operator leads [default: the one it runs in].
    #[arg(long, value_name = "NAMESPACE", env = "SHARDED_ETCD_LEASE_NAMESPACE")]
    pub lease_namespace: Option<String>,
    /// Name of this operator, unlike that of all others [default: the host's name and a random part].
    #[arg(long, value_name = "NAME", env = "SHARDED_ETCD_IDENTITY")]
    pub identity: Option<String>,
}

/// Arguments of `member-guard`.
#[derive(Debug, Clone, Args)]
pub struct MemberGuardArgs {
    /// etcd's data folder; the marker is put beside it, on the same volume.
    #[arg(long, value_name = "DIR", env = "SHARDED_ETCD_DATA_DIR")]
    pub data_dir: PathBuf,
    /// etcd's initial cluster token.
    #[arg(long, env = "SHARDED_ETCD_TOKEN")]
    pub token: String,
    /// Whether the cluster is being made, or has served already.
    #[arg(long, value_enum, env = "SHARDED_ETCD_STATE")]
    pub state: ClusterState,
    /// Where a container says why it ended; left alone where there is none.
    #[arg(
        long,
        value_name = "FILE",
        env = "SHARDED_ETCD_TERMINATION_LOG",
        default_value = "/dev/termination-log"
    )]
    pub termination_log: PathBuf,
}

/// Whether a cluster is being made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum ClusterState {
    /// It is being made: members begin with empty volumes.
    New,
    /// All of its members have served: none may be without data.
    Existing,
}

/// Arguments of `status`.
#[derive(Debug, Clone, Args)]
pub struct StatusArgs {
    /// The running topology and the form of the answer.
    #[command(flatten)]
    pub query: QueryArgs,
}

/// Arguments of `plan`.
#[derive(Debug, Clone, Args)]
pub struct PlanArgs {
    /// A file with one ShardedEtcd.
    #[arg(short, long, value_name = "FILE", env = "SHARDED_ETCD_FILE")]
    pub file: PathBuf,
    /// The running topology and the form of the answer.
    #[command(flatten)]
    pub query: QueryArgs,
}

/// Which running topology to ask, and in which form to print the answer.
#[derive(Debug, Clone, Args)]
pub struct QueryArgs {
    /// Endpoint of a running topology.
    #[arg(long, value_name = "ADDR", env = "SHARDED_ETCD_ENDPOINT", default_value = DEFAULT_ENDPOINT)]
    pub endpoint: String,
    /// Form of the answer.
    #[arg(short, long, value_enum, default_value_t = OutputFormat::Table, env = "SHARDED_ETCD_OUTPUT")]
    pub output: OutputFormat,
}

/// Form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum OutputFormat {
    /// Tables for people.
    Table,
    /// JSON, stable.
    Json,
}

/// A time on the command line, in the notation of the resource; `0s` too, which means not to wait at all.
pub fn duration(text: &str) -> Result<Duration, String> {
    match text {
        "0" | "0s" => Ok(Duration::ZERO),
        text => TimeSpan(text.to_owned()).duration(),
    }
}

/// A time on the command line that is not zero.
fn positive_duration(text: &str) -> Result<Duration, String> {
    match TimeSpan(text.to_owned()).duration()? {
        Duration::ZERO => Err("write a time above zero".to_owned()),
        time => Ok(time),
    }
}

/// As etcd takes it (server/etcdserver/api/v3rpc/watch.go, `NewWatchServer`): zero, its flag's own default, is ten minutes,
/// and less than 100 ms counts as that.
fn progress_interval(text: &str) -> Result<Duration, String> {
    match duration(text)? {
        Duration::ZERO => Ok(Limits::default().progress_interval),
        time => Ok(time.max(PROGRESS_INTERVAL_MIN)),
    }
}

/// Why an address cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Not `HOST:PORT`.
    #[error("{0:?} is no address; write HOST:PORT, such as {DEFAULT_ENDPOINT}")]
    Malformed(String),
    /// TLS is asked for.
    #[error("{0:?} asks for TLS, which is not there yet; write http:// or no scheme")]
    Tls(String),
}

/// `HOST:PORT` of an address or `http://` URL.
///
/// # Errors
/// If it is neither.
pub fn host_port(text: &str) -> Result<&str, AddressError> {
    if text.starts_with("https://") {
        return Err(AddressError::Tls(text.to_owned()));
    }
    let rest = text.strip_prefix("http://").unwrap_or(text);
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    let (host, port) = rest.rsplit_once(':').unwrap_or_default();
    let bare_v6 = host.contains(':') && !(host.starts_with('[') && host.ends_with(']'));
    if host.is_empty() || bare_v6 || host.contains('/') || port.parse::<u16>().is_err() {
        return Err(AddressError::Malformed(text.to_owned()));
    }
    Ok(rest)
}

/// The URLs that clients are told: those given, or the addresses listened on. A bound-to-everything address is no place
/// to dial; clients of this machine are told its loopback address then.
pub fn client_urls(given: &[String], bound: &[SocketAddr]) -> Vec<String> {
    if given.is_empty() { bound.iter().map(|bound| reachable(*bound)).collect() } else { given.to_vec() }
}

fn reachable(bound: SocketAddr) -> String {
    let mut reachable = bound;
    if bound.ip().is_unspecified() {
        let loopback: std::net::IpAddr = if bound.is_ipv4() {
            std::net::Ipv4Addr::LOCALHOST.into()
        } else {
            std::net::Ipv6Addr::LOCALHOST.into()
        };
        reachable.set_ip(loopback);
    }
    format!("http://{reachable}")
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_is_an_environment_variable() {
        for command in Cli::command().get_subcommands() {
            for argument in command.get_arguments() {
                let id = argument.get_id().as_str();
                // What a command is about stands on its command line.
                let exempt = ["help", "version", "verbose"].contains(&id) || argument.is_positional();
                let variable = argument.get_env().map(|v| v.to_string_lossy().into_owned());
                assert!(
                    exempt || variable.as_deref().is_some_and(|v| v.starts_with("SHARDED_ETCD_")),
                    "{} --{id}: {variable:?}",
                    command.get_name()
                );
            }
        }
    }

    #[test]
    fn the_progress_interval_is_taken_as_etcd_takes_it() {
        let seconds =
            ["0s", "0", "1h0m0s", "50ms", "2s"].map(|text| progress_interval(text).unwrap().as_secs_f64());
        assert_eq!(seconds, [600.0, 600.0, 3600.0, 0.1, 2.0]);
        assert!(progress_interval("soon").unwrap_err().contains("write a number with"));
    }

    #[test]
    fn the_engine_takes_etcds_flags_and_variables() {
        let cli = Cli::try_parse_from([
            "sharded-etcd",
            "engine",
            "--listen-client-urls",
            "http://127.0.0.1:1,http://127.0.0.2:1",
            "--quota-backend-bytes=-1",
        ]);
        let Command::Engine(args) = cli.unwrap().command else { panic!("another command") };
        assert_eq!(args.listen, ["http://127.0.0.1:1", "http://127.0.0.2:1"]);
        assert_eq!(args.quota_backend_bytes, -1);
        let cli =
            Cli::try_parse_from(["sharded-etcd", "engine", "--name=a", "--max-txn-ops", "7", "--name=b"]);
        let Command::Engine(args) = cli.unwrap().command else { panic!("another command") };
        assert_eq!((args.name.as_str(), args.max_txn_ops), ("b", 7), "the last one counts");
        let variable = |set: &'static [&'static str], id: &str| {
            let command = Cli::command();
            let engine = command.find_subcommand("engine").unwrap().clone();
            let engine = with_etcd_variables(engine, |name| set.contains(&name));
            let argument = engine.get_arguments().find(|argument| argument.get_id() == id).unwrap();
            argument.get_env().unwrap().to_string_lossy().into_owned()
        };
        assert_eq!(variable(&["ETCD_LISTEN_CLIENT_URLS"], "listen"), "ETCD_LISTEN_CLIENT_URLS");
        assert_eq!(
            variable(&["ETCD_LISTEN_CLIENT_URLS", "SHARDED_ETCD_LISTEN"], "listen"),
            "SHARDED_ETCD_LISTEN"
        );
        assert_eq!(variable(&["ETCD_DATA_DIR"], "data_dir"), "ETCD_DATA_DIR");
        assert_eq!(variable(&[], "name"), "SHARDED_ETCD_NAME");
    }

    #[test]
    fn revisions_are_bumped_and_compacted_together_or_not_at_all() {
        let restore = |more: &[&str]| {
            Cli::try_parse_from([&["sharded-etcd", "engine", "restore", "x"], more].concat()).map(drop)
        };
        restore(&[]).unwrap();
        restore(&["--bump-revision", "5", "--mark-compacted", "--data-dir", "d"]).unwrap();
        for alone in [&["--bump-revision", "5"][..], &["--mark-compacted"]] {
            assert_eq!(restore(alone).unwrap_err().kind(), ErrorKind::MissingRequiredArgument, "{alone:?}");
        }
    }

    #[test]
    fn file_and_shards_exclude_each_other() {
        let error = Cli::try_parse_from(["sharded-etcd", "up", "-f", "x.yaml", "--shards", "3"]).unwrap_err();
        assert_eq!(error.kind(), clap::error::ErrorKind::ArgumentConflict);
    }

    #[test]
    fn addresses() {
        for (text, expected) in [
            ("127.0.0.1:2379", "127.0.0.1:2379"),
            ("http://localhost:1/", "localhost:1"),
            ("[::1]:2379", "[::1]:2379"),
            ("0.0.0.0:0", "0.0.0.0:0"),
        ] {
            assert_eq!(host_port(text), Ok(expected));
        }
        for text in ["", "2379", ":2379", "a", "a:b", "a:70000", "::1:2379", "ftp://a:1", "a/b:1"] {
            assert_eq!(host_port(text), Err(AddressError::Malformed(text.to_owned())));
        }
        assert!(matches!(host_port("https://a:1"), Err(AddressError::Tls(_))));
    }

    #[test]
    fn clients_are_told_something_they_can_dial() {
        let bound = |text: &str| client_urls(&[], &[text.parse().unwrap()]);
        assert_eq!(bound("10.0.0.1:5"), ["http://10.0.0.1:5"]);
        assert_eq!(bound("0.0.0.0:5"), ["http://127.0.0.1:5"]);
        assert_eq!(bound("[::]:5"), ["http://[::1]:5"]);
        let given = ["http://db.example:2379".to_owned()];
        assert_eq!(client_urls(&given, &["0.0.0.0:5".parse().unwrap()]), given);
    }
}
