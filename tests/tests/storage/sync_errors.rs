//! A disk that reports an error: the process stops and acknowledges nothing that is not on disk.
use carillon_ctl::lab::ProcessState;
use carillon_proto::public::{MessageState, MessageView};
use carillon_tests::api::spec;
use carillon_tests::rig::{Rig, until};
use std::time::Duration;

const LIMIT: Duration = Duration::from_secs(30);

pub async fn log(rig: &Rig) {
    stops(rig, "log::sync_error", 2).await;
}

pub async fn state(rig: &Rig) {
    stops(rig, "apply::write_error", 3).await;
}

/// Arms the fail point on one node, submits until it has stopped, and looks for everything that was acknowledged.
async fn stops(rig: &Rig, point: &str, node: u64) {
    rig.until_caught_up(LIMIT).await;
    let armed = rig.lab.data_dir(node).join("failpoints.txt");
    fs_err::write(&armed, format!("{point}=return\n")).unwrap();
    let mut ids = Vec::new();
    let mut round = 0;
    until(&format!("{point} stops node {node}"), LIMIT, async || {
        round += 1;
        let messages = rig.practices.iter().take(16).enumerate();
        let messages =
            messages.map(|(i, practice)| spec(practice, &format!("{point}-{round}-{i}"), i)).collect();
        ids.extend(rig.submit(messages).await.into_iter().map(|m| m.message_id));
        let members = rig.lab.status().await.map_err(|e| e.to_string())?;
        let member = members.iter().find(|m| m.name == format!("node-{node}")).unwrap();
        match member.state {
            ProcessState::Ended => Ok(()),
            state => Err(format!("it is {state:?}")),
        }
    })
    .await;
    let text = fs_err::read_to_string(rig.lab.log_path(&format!("node-{node}"))).unwrap();
    assert!(text.contains(point) && text.contains("stopping"), "the log says why");
    fs_err::remove_file(&armed).unwrap();
    rig.start_node(node).await;
    rig.until_caught_up(LIMIT).await;
    assert!(ids.len() >= 16);
    for id in &ids {
        let message = rig.get(id, MessageView::Basic).await.unwrap();
        assert_ne!(message.state(), MessageState::Unspecified);
    }
}
