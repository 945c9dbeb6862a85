//! `carillonctl practice list`.
use super::Verdict;
use super::output::{Format, print, table};
use super::target::Target;
use carillon_proto::Slot;
use carillon_proto::admin::GetStatusResponse;
use carillon_proto::internal::PracticeRecord;
use clap::Args;
use serde_json::{Value, json};

#[derive(Debug, Args)]
pub struct ListArgs {
    #[command(flatten)]
    target: Target,
    /// Of this tenant only.
    #[arg(long)]
    tenant: Option<String>,
}

pub async fn list(args: ListArgs, format: Format) -> anyhow::Result<Verdict> {
    let status = args.target.any().await?.status().await?;
    let wanted = |p: &&PracticeRecord| args.tenant.as_ref().is_none_or(|tenant| *tenant == p.tenant);
    let mut practices: Vec<&PracticeRecord> = status.practices.iter().filter(wanted).collect();
    practices.sort_by(|a, b| (&a.tenant, &a.practice).cmp(&(&b.tenant, &b.practice)));
    let values: Vec<Value> = practices.into_iter().map(|practice| as_json(practice, &status)).collect();
    print(format, &values, || {
        let row = |value: &Value| {
            let text = |name: &str| match &value[name] {
                Value::String(text) => text.clone(),
                Value::Array(list) => list.iter().filter_map(Value::as_str).collect::<Vec<_>>().join(" "),
                other => other.to_string(),
            };
            ["tenant", "practice", "practice_no", "time_zone", "carrier", "weight", "partition", "paused_on"]
                .map(text)
                .to_vec()
        };
        let head =
            ["TENANT", "PRACTICE", "NUMBER", "TIME ZONE", "CARRIER", "WEIGHT", "PARTITION", "PAUSED ON"];
        table(&head, &values.iter().map(row).collect::<Vec<_>>());
        println!("{} practices", values.len());
    })?;
    Ok(Verdict::Done)
}

fn as_json(practice: &PracticeRecord, status: &GetStatusResponse) -> Value {
    let carrier = |number: u32| {
        let records = status.carriers.iter().filter_map(|c| c.carrier.as_ref());
        records.into_iter().find(|r| r.carrier_no == number).map_or(String::new(), |r| r.name.clone())
    };
    let pauses = status.pauses.iter().filter(|pause| pause.practice_no == practice.practice_no);
    let partitions = status.map.iter().filter(|row| row.partition != 0).count() as u32;
    let partition = match partitions {
        0 => 0,
        known => Slot::of_practice(&practice.tenant, &practice.practice).partition(known),
    };
    let hours = practice.hours.as_ref().map(|hours| {
        json!({ "mon_fri": hours.mon_fri, "sat": hours.sat, "sun": hours.sun, "closed_dates": hours.closed_dates })
    });
    let zones =
        practice.recipient_zones().as_str_name().trim_start_matches("RECIPIENT_ZONES_").to_lowercase();
    json!({
        "tenant": practice.tenant, "practice": practice.practice, "practice_no": practice.practice_no,
        "time_zone": practice.time_zone, "carrier": carrier(practice.carrier_no),
        "weight": practice.weight.max(1), "partition": partition, "campaign": practice.campaign,
        "brand": practice.brand, "hours": hours, "recipient_zones": zones,
        "paused_on": pauses.map(|pause| carrier(pause.carrier_no)).collect::<Vec<_>>(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use carillon_proto::admin::CarrierStatus;
    use carillon_proto::internal::{CarrierRecord, PartitionRecord, PauseRecord};

    #[test]
    fn a_practice_is_shown_with_its_carrier_its_partition_and_its_pause() {
        let record = CarrierRecord { carrier_no: 7, name: "main".to_owned(), ..Default::default() };
        let status = GetStatusResponse {
            carriers: vec![CarrierStatus { carrier: Some(record), ..Default::default() }],
            map: (0..=16).map(|partition| PartitionRecord { partition, ..Default::default() }).collect(),
            pauses: vec![PauseRecord { practice_no: 3, carrier_no: 7, ..Default::default() }],
            ..Default::default()
        };
        let practice = PracticeRecord {
            practice_no: 3,
            tenant: "acme".to_owned(),
            practice: "hill".to_owned(),
            carrier_no: 7,
            ..Default::default()
        };
        let value = as_json(&practice, &status);
        assert_eq!((&value["carrier"], &value["weight"]), (&"main".into(), &1.into()));
        assert_eq!(value["paused_on"], json!(["main"]));
        assert_eq!(value["partition"], Slot::of_practice("acme", "hill").partition(16));
        assert_eq!(as_json(&PracticeRecord::default(), &status)["paused_on"], json!([]));
    }
}
