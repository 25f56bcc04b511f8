//! What goes wrong.

use std::{sync::Arc, time::Duration};

use crate::{managing::Managing, net::Weather, process::Process, story::Story, trace, world::World};

/// Lets things go wrong until it is dropped.
pub async fn run(world: Arc<World>, story: Story) {
    let rng = world.rng.fork();
    world.net.set_weather(Weather {
        delay_us_max: rng.between(300, 8000),
        slow: rng.below(10),
        lost_requests: if rng.chance(50) { rng.below(6) } else { 0 },
        lost_answers: if rng.chance(50) { rng.below(6) } else { 0 },
        lagging: if rng.chance(50) { rng.below(40) } else { 0 },
    });
    loop {
        tokio::time::sleep(Duration::from_millis(rng.between(20, 600))).await;
        let etcds = world.etcds();
        let etcd = Arc::clone(rng.pick(&etcds));
        let place = rng.below(story.proxies as u64) as usize;
        let most = Duration::from_millis(rng.between(10, 1500));
        match rng.below(11) {
            0..3 => {
                let name = if story.managers > 0 && rng.chance(30) {
                    format!("manager-{}", rng.below(story.managers as u64))
                } else {
                    format!("proxy-{place}")
                };
                trace!(world, "chaos parts {name} from {} for {most:?}", etcd.name);
                let world = Arc::clone(&world);
                world.net.part(&name, &etcd.name, true);
                tokio::spawn(async move {
                    tokio::time::sleep(most).await;
                    world.net.part(&name, &etcd.name, false);
                });
            }
            3..6 => {
                let process = world.proxies.lock()[place].take();
                if let Some(process) = process {
                    trace!(world, "chaos kills {}", process.name);
                    process.kill();
                    let world = Arc::clone(&world);
                    tokio::spawn(async move {
                        tokio::time::sleep(most / 4).await;
                        Process::start(&world, place).await;
                    });
                }
            }
            6 | 7 => {
                trace!(world, "chaos stops {} for {most:?}", etcd.name);
                etcd.pause(true);
                tokio::spawn(async move {
                    tokio::time::sleep(most).await;
                    etcd.pause(false);
                });
            }
            8 => {
                trace!(world, "chaos restarts {}", etcd.name);
                etcd.restart();
            }
            9 => {
                // Meta has room that no client can use up.
                let shard = Arc::clone(rng.pick(&world.shards_there()));
                trace!(world, "chaos fills {} for {most:?}", shard.name);
                shard.fill(true);
                tokio::spawn(async move {
                    tokio::time::sleep(most).await;
                    shard.fill(false);
                });
            }
            _ if story.managers > 0 => {
                let place = rng.below(story.managers as u64) as usize;
                let managing = world.managers.lock()[place].take();
                if let Some(managing) = managing {
                    trace!(world, "chaos kills manager-{place}");
                    managing.kill();
                    let world = Arc::clone(&world);
                    tokio::spawn(async move {
                        tokio::time::sleep(most / 4).await;
                        Managing::start(&world, place).await;
                    });
                }
            }
            _ => {}
        }
    }
}
