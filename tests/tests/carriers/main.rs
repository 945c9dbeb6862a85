//! Carriers as real processes: an account over HTTPS beside the SMPP one, which is reached over TLS, its signed callbacks, lost answers that a look-up
//! resolves, redaction, contracts that are read again, and accounts without a business associate agreement.
mod story;

use carillon_ctl::lab::{Lab, LabOptions};
use carillon_tests::rig::Rig;
use carillon_tests::steps::Steps;
use story::Story;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_account_over_http_does_what_one_over_smpp_does() {
    let options = LabOptions {
        with_rest: true,
        carrier_tls: true,
        profile: "perfect".to_owned(),
        ..LabOptions::default()
    };
    let contract = |lab: &Lab| story::write_contract(lab, 2, story::SOON);
    let rig = Rig::start_with(options, contract).await;
    let story = Story::new(&rig).await;
    let mut steps = Steps::new("carriers");
    steps.run("smpp over tls: submit, receipt, DELIVERED", story.over_tls()).await;
    steps.run("https: submit, signed callback, DELIVERED, redacted", story.delivered()).await;
    steps.run("https: a lost answer is UNKNOWN until the list tells", story.lost_and_found()).await;
    steps.run("https: what was never taken over is sent again", story.lost_and_absent()).await;
    steps.run("https: a silent message is asked about", story.silent()).await;
    steps.run("https: throttled with Retry-After, then delivered", story.throttled()).await;
    steps.run("https: a bad signature is refused and counted", story.bad_signature()).await;
    steps.run("contracts: a new version counts without a restart", story.contract()).await;
    steps.run("contracts: a bad file changes nothing", story.bad_contract()).await;
    steps.run("baa: a carrier without one carries no phi", story.agreement()).await;
    steps.run("canary: no number and no text in any log", story.canary()).await;
    steps.finish();
}
