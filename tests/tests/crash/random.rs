//! kill -9 at moments drawn from a seed: one node, two at once, all three, and again while the first restart replays.
use carillon_tests::steps::say;
use carillon_tests::trial::Trial;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use std::time::Duration;

const ROUNDS: usize = 6;

pub async fn kills(trial: &Trial, seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    for round in 0..ROUNDS {
        // Real time must pass: the moment is what is tried.
        tokio::time::sleep(Duration::from_millis(random.random_range(50..900))).await;
        let victims: Vec<u64> = match random.random_range(0..4) {
            0 => vec![trial.rig.busiest().await],
            1 => vec![1 + random.random_range(0..3)],
            2 => vec![1, 3],
            _ => vec![1, 2, 3],
        };
        for node in &victims {
            trial.rig.lab.kill_node(*node).unwrap();
        }
        if random.random_bool(0.5) {
            trial.rig.lab.start_node(victims[0]).unwrap();
            tokio::time::sleep(Duration::from_millis(random.random_range(0..400))).await;
            if let Err(why) = trial.rig.lab.kill_node(victims[0]) {
                say(&format!("kill: the second kill of node {}: {why}", victims[0]));
            }
        }
        trial.start_nodes(&victims).await;
        trial.works().await;
        trial.say(&format!("round {round}: {victims:?} killed"));
    }
}
