//! What becomes of messages, as real processes: appointments that move, explanations, dead letters, breakers, failover to a second
//! carrier, senders. The steps share one cluster.
mod appointments;
mod carriers;
mod dead_letters;
mod senders;

use carillon_ctl::lab::LabOptions;
use carillon_tests::rig::Rig;
use carillon_tests::steps::Steps;

fn perfect() -> LabOptions {
    LabOptions { profile: "perfect".to_owned(), ..LabOptions::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_appointment_changes_as_a_whole_and_every_message_can_be_explained() {
    let rig = Rig::start(perfect()).await;
    let mut steps = Steps::new("care");
    steps.run("an appointment is moved, edited and taken back", appointments::changes(&rig)).await;
    steps.run("versions rise, repeats change nothing", appointments::versions(&rig)).await;
    steps.run("a change of what was handed over says so, and when", appointments::too_late(&rig)).await;
    steps
        .run("recurring reminders: made once, through the kill of a leader", appointments::recurring(&rig))
        .await;
    steps.run("explain: a message that waits for its time", appointments::explained(&rig)).await;
    steps.finish();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_carrier_that_fails_is_spared_and_what_it_may_have_stays_with_it() {
    let rig = Rig::start(LabOptions { lane_limit: carriers::LIMIT, ..perfect() }).await;
    let mut spare = carriers::Spare::start(&rig).await;
    let mut steps = Steps::new("carriers");
    steps.run("dead letters: two messages that will die", dead_letters::begin(&rig, &spare)).await;
    steps.run("an operator opens a breaker: held, explained, foreseen", carriers::opened(&rig)).await;
    steps.run("dead letters: listed, replayed once, dropped", dead_letters::decided(&rig, &spare)).await;
    steps
        .run("failover: what waits goes to the spare, an UNKNOWN stays", carriers::failover(&rig, &spare))
        .await;
    spare.stop();
    steps.run("senders: a recipient keeps its own, weights, a pause", senders::kept(&rig)).await;
    steps.run("senders: what waits for a paused one goes to another", senders::moved(&rig)).await;
    steps.run("senders: named by routes, wrong ones refused, dropped", senders::named(&rig)).await;
    steps.finish();
}
