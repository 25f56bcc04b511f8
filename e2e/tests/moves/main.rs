//! Moves that meet faults: at a step of a move, meta, the source, the destination, the shard manager or a proxy is killed,
//! frozen or cut off, while writers, watchers, lock holders and lease keepers work (`e2e/workload`, which judges at the end).
//! The move ends all the same, and the source's copy is gone.
//!
//! `FAULT_SEED` repeats the choices of a run. `FAULT_CELLS=all` tries every step × fault × process instead of twelve,
//! `FAULT_CELLS=flip` those whose step, fault or process has that in its name, and `FAULT_SECONDS` is how long a fault lasts (1 unless told). docs/moves.md has the table of a whole run.
// What happened is printed, for whoever looks into a failed run.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod world;

use std::time::Duration;

use anyhow::{Context, Result};
use sharded_etcd_testkit::Dice;
use tokio::time::Instant;

use world::{Cell, Fault, STEPS, Victim, World};

/// Cells that a usual run tries.
const CELLS: usize = 12;
/// Cells after which a long run is judged.
const CELLS_JUDGED: usize = 30;

#[tokio::test(flavor = "multi_thread")]
async fn moves_outlive_faults_at_every_step() -> Result<()> {
    let seed = match std::env::var("FAULT_SEED") {
        Ok(seed) => seed.parse().context("FAULT_SEED is no number")?,
        Err(_) => std::time::UNIX_EPOCH.elapsed()?.as_micros() as u64,
    };
    let wanted = std::env::var("FAULT_CELLS").ok();
    let seconds: f64 = std::env::var("FAULT_SECONDS").map_or(Ok(1.0), |text| text.parse())?;
    let lasts = Duration::from_secs_f64(seconds);
    println!("FAULT_SEED={seed} FAULT_SECONDS={seconds}");
    let mut dice = Dice::new(seed);
    let cells = match wanted.as_deref() {
        None => some_cells(&mut dice),
        Some("all") => every_cell(),
        Some(part) => every_cell().into_iter().filter(|cell| cell.to_string().contains(part)).collect(),
    };
    assert!(!cells.is_empty(), "FAULT_CELLS={wanted:?} names none");
    for part in cells.chunks(CELLS_JUDGED) {
        let mut world = World::start(lasts).await?;
        for &cell in part {
            let begun = Instant::now();
            let told = world
                .play(cell, lasts, &mut dice)
                .await
                .with_context(|| format!("{cell}, FAULT_SEED={seed}"))?;
            println!("{cell}: {told}, {:.1} s", begun.elapsed().as_secs_f64());
        }
        world.judge().await.with_context(|| format!("FAULT_SEED={seed}"))?;
    }
    Ok(())
}

fn every_cell() -> Vec<Cell> {
    let of_step = |step| {
        Fault::ALL.iter().flat_map(move |&fault| Victim::ALL.map(|victim| Cell { step, fault, victim }))
    };
    STEPS.iter().flat_map(|&step| of_step(step)).collect()
}

/// Each process and each fault several times, in pairs that a run of fifteen would have all of, at steps that the dice choose.
fn some_cells(dice: &mut Dice) -> Vec<Cell> {
    let first = dice.below(15) as usize;
    let cell = |n: usize| {
        let (fault, victim) = (Fault::ALL[n % 3], Victim::ALL[n % 5]);
        Cell { step: STEPS[dice.below(STEPS.len() as u64) as usize], fault, victim }
    };
    (first..first + CELLS).map(cell).collect()
}
