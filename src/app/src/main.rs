//! `sharded-etcd`: one etcd endpoint over several etcds.

mod admin;
mod auto_compaction;
mod cli;
mod engine;
mod etcd_flags;
mod files;
mod front;
mod host;
mod listen;
mod logs;
mod member_guard;
mod open_files;
mod operator;
mod order;
mod patience;
mod plan;
mod proxy;
mod query;
mod routed;
mod shard_manager;
mod signals;
mod status;
mod table;
mod up;
mod version;
mod watched_file;

use std::{io::Write, process::ExitCode};

use anyhow::{Context, Result};
use clap::error::ErrorKind;
use cli::{Command, EngineArgs, EngineCommand};
use order::OrderArgs;
use sharded_etcd_core::orders::Order;

// The proxy's work is many small allocations on several threads, where it costs 5 to 15 % less CPU than glibc's.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Exit code of `plan` when there are changes.
const EXIT_CHANGES: u8 = 2;
/// Exit code for a command line that is wrong, as in sysexits.h: 2 is `plan`'s "there are changes".
const EXIT_USAGE: u8 = 64;

fn main() -> ExitCode {
    let cli = match cli::parse() {
        Ok(cli) => cli,
        Err(error) => {
            let _ = error.print();
            let is_answer = matches!(error.kind(), ErrorKind::DisplayHelp | ErrorKind::DisplayVersion);
            return if is_answer { ExitCode::SUCCESS } else { ExitCode::from(EXIT_USAGE) };
        }
    };
    logs::start(&cli.log);
    match run(cli.command) {
        Ok(code) => code,
        Err(error) => {
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command) -> Result<ExitCode> {
    match command {
        Command::Version => print(format_args!(
            "sharded-etcd {}\ncommit {}\netcd API {}",
            version::VERSION,
            version::COMMIT,
            version::ETCD_API
        )),
        Command::Crd => print(format_args!("{}", sharded_etcd_crd::crd_yaml())),
        Command::MemberGuard(args) => {
            member_guard::run(&args)?;
            Ok(ExitCode::SUCCESS)
        }
        Command::Engine(EngineArgs { command: Some(EngineCommand::Check { dir }), .. }) => {
            print(format_args!("{}", engine::check(&dir)?))
        }
        Command::Engine(EngineArgs { command: Some(EngineCommand::Restore(args)), .. }) => {
            print(format_args!("{}", engine::restore(args)?))
        }
        command => {
            open_files::raise_limit();
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .enable_all()
                .build()
                .context("cannot start threads")?;
            let code = runtime.block_on(run_async(command));
            // What still runs has been told to stop and given its time.
            runtime.shutdown_background();
            code
        }
    }
}

async fn run_async(command: Command) -> Result<ExitCode> {
    match command {
        Command::Up(args) => up::run(args).await?,
        Command::Proxy(args) => proxy::run(args).await?,
        Command::Status(args) => return print(format_args!("{}", status::run(args).await?)),
        Command::Plan(args) => {
            let answer = plan::run(args).await?;
            let printed = print(format_args!("{}", answer.text))?;
            return Ok(if answer.has_changes { ExitCode::from(EXIT_CHANGES) } else { printed });
        }
        Command::Move(args) => return by_hand(args.order()?, &args.order).await,
        Command::Split(args) => return by_hand(args.split()?, &args.order).await,
        Command::Merge(args) => return by_hand(args.merge()?, &args.order).await,
        Command::Abort(args) => return by_hand(args.order()?, &args.order).await,
        Command::Approve(args) => {
            return by_hand(Order::Approve { plan: args.plan.clone() }, &args.order).await;
        }
        Command::ShardManager(args) => shard_manager::run(args).await?,
        Command::Engine(args) => engine::run(args).await?,
        Command::Operator(args) => operator::run(args).await?,
        Command::Version | Command::Crd | Command::MemberGuard(_) => {}
    }
    Ok(ExitCode::SUCCESS)
}

/// Gives an order; what changes meanwhile goes to standard error, the end to standard output.
async fn by_hand(order: Order, args: &OrderArgs) -> Result<ExitCode> {
    let answer = order::run(order, args, |told| {
        // A terminal that is gone does not stop the order.
        let _ = writeln!(std::io::stderr(), "{told}");
    });
    print(format_args!("{}", answer.await?))
}

/// Prints an answer; a reader that has gone is no failure.
fn print(answer: std::fmt::Arguments<'_>) -> Result<ExitCode> {
    match writeln!(std::io::stdout().lock(), "{answer}") {
        Err(error) if error.kind() != std::io::ErrorKind::BrokenPipe => {
            Err(error).context("cannot print the answer")
        }
        _ => Ok(ExitCode::SUCCESS),
    }
}
