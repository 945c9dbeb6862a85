//! Wall clocks that jump while the nodes run: forwards and back, on leaders and followers, and all at once.
use carillon_tests::trial::Trial;

pub const SMALL_S: [(u64, i64); 5] = [(1, 8), (2, -8), (3, 3), (1, -5), (2, 8)];
/// Beyond what certificates allow backwards (an hour) a node could not shake hands any more.
pub const LARGE_S: [(u64, i64); 5] = [(1, 100), (2, -2_400), (3, 7_200), (1, -1_800), (2, 86_400)];

pub async fn jumps(trial: &Trial, offsets_s: &[(u64, i64)]) {
    let clock = trial.rig.arena.clock();
    let largest = offsets_s.iter().map(|(_, offset_s)| *offset_s).max().unwrap_or(0);
    for (node, offset_s) in offsets_s {
        let (node, offset_s) = (*node, *offset_s);
        clock.set(node, offset_s).unwrap();
        trial.works().await;
        trial.say(&format!("node {node}: clock {offset_s:+} s"));
    }
    let leader = trial.rig.busiest().await;
    clock.set(leader, largest).unwrap();
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
