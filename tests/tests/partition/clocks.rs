//! Wall clocks that jump while the nodes run: forwards and back, on leaders and followers, and all at once.
use carillon_tests::trial::Trial;

/// Beyond what certificates allow backwards (an hour) the node could not shake hands any more.
const OFFSETS_S: [(u64, i64); 5] = [(1, 100), (2, -2_400), (3, 7_200), (1, -1_800), (2, 86_400)];

pub async fn jumps(trial: &Trial) {
    let clock = trial.rig.arena.clock();
    for (node, offset_s) in OFFSETS_S {
        clock.set(node, offset_s).unwrap();
        trial.works().await;
        trial.say(&format!("node {node}: clock {offset_s:+} s"));
    }
    let leader = trial.rig.busiest().await;
    clock.set(leader, 3_600).unwrap();
    trial.works().await;
    // A new leader with an older clock must not turn time back.
    trial.rig.lab.kill_node(leader).unwrap();
    trial.works().await;
    trial.start_nodes(&[leader]).await;
    for node in trial.rig.lab.node_ids() {
        clock.set(node, 0).unwrap();
    }
    trial.works().await;
    trial.say("all clocks are right again");
}
