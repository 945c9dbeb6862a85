//! `carillonctl hours ...`: the rules that say when recipients may be texted, and what they mean for one recipient.
use super::Verdict;
use super::output::{Format, print};
use super::target::Target;
use carillon_proto::admin::{CheckHoursRequest, CheckHoursResponse, PutHoursRequest};
use carillon_proto::local_time;
use carillon_proto::place;
use carillon_proto::public::{MessageClass, Priority};
use clap::{Args, Subcommand};
use jiff::Timestamp;
use serde_json::json;
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Which rules count for a recipient, and when the hours begin next; exit code 3 if they are over at that moment.
    Check(Box<Check>),
    /// The rules in force (TOML).
    Show {
        #[command(flatten)]
        target: Target,
    },
    /// Put other rules into force. Messages that wait follow them.
    Replace {
        #[command(flatten)]
        target: Target,
        /// A file like the one that `show` prints.
        #[arg(long, required_unless_present = "built_in", conflicts_with = "built_in")]
        file: Option<PathBuf>,
        /// Back to the rules built into the program.
        #[arg(long)]
        built_in: bool,
        /// Only if this version is in force.
        #[arg(long, default_value_t = 0)]
        replaces: u64,
        /// Only check the file.
        #[arg(long)]
        dry_run: bool,
    },
}

#[derive(Debug, Args)]
pub struct Check {
    #[command(flatten)]
    target: Target,
    /// E.164; its area code says where it may be.
    #[arg(long, default_value = "")]
    phone: String,
    /// IANA zone, as a message may name it.
    #[arg(long, default_value = "")]
    zone: String,
    /// "US-FL" or "DE", as a message may name it.
    #[arg(long, default_value = "")]
    region: String,
    /// With --practice: its zone and its own hours count too.
    #[arg(long, default_value = "", requires = "practice")]
    tenant: String,
    #[arg(long, default_value = "", requires = "tenant")]
    practice: String,
    #[arg(long, default_value = "reminder")]
    class: String,
    /// Default: that of the class.
    #[arg(long)]
    priority: Option<String>,
    /// "2026-12-03T21:30:00Z", or wall-clock time of --zone: "2026-12-03T21:30". Default: now.
    #[arg(long)]
    at: Option<String>,
}

pub async fn run(command: Command, format: Format) -> anyhow::Result<Verdict> {
    match command {
        Command::Check(args) => check(*args, format).await,
        Command::Show { target } => {
            let hours = target.any().await?.hours().await?;
            let value = json!({ "version": hours.version, "stamp": hours.stamp, "rules": hours.rules });
            print(format, &value, || {
                match hours.version {
                    0 => println!("# the rules built in, stamp {}", hours.stamp),
                    version => println!("# version {version}, stamp {}", hours.stamp),
                }
                print!("{}", hours.rules);
            })?;
            Ok(Verdict::Done)
        }
        Command::Replace { target, file, built_in: _, replaces, dry_run } => {
            let rules = file.as_ref().map(fs_err::read_to_string).transpose()?.unwrap_or_default();
            let put = PutHoursRequest { rules, replaces, trial: dry_run };
            let version = target.any().await?.put_hours(put).await?;
            print(format, &json!({ "version": version, "dry_run": dry_run }), || match dry_run {
                true => println!("the rules are right; version {version} stays in force"),
                false => println!("version {version} is in force"),
            })?;
            Ok(Verdict::Done)
        }
    }
}

async fn check(args: Check, format: Format) -> anyhow::Result<Verdict> {
    let class = MessageClass::from_str_name(&format!("MESSAGE_CLASS_{}", args.class.to_ascii_uppercase()))
        .ok_or_else(|| anyhow::anyhow!("unknown class; see MessageClass in messages.proto"))?;
    let priority = match &args.priority {
        None => Priority::Unspecified,
        Some(name) => Priority::from_str_name(&format!("PRIORITY_{}", name.to_ascii_uppercase()))
            .ok_or_else(|| anyhow::anyhow!("unknown priority; see Priority in messages.proto"))?,
    };
    let request = CheckHoursRequest {
        at_ms: args.at.as_deref().map_or(Ok(0), |at| moment(at, &args.zone))?,
        tenant: args.tenant,
        practice: args.practice,
        phone_number: args.phone,
        time_zone: args.zone,
        region: args.region,
        class: class as i32,
        priority: priority as i32,
    };
    let answer = args.target.any().await?.check_hours(request).await?;
    let place = answer.place.clone().unwrap_or_default();
    let value = json!({
        "zones": place.time_zones, "regions": place.regions, "source": place.source().as_str_name(),
        "at": utc(answer.at_ms), "open": answer.open, "exempt": answer.exempt, "rules": answer.rules,
        "opens": utc(answer.opens_ms), "open_until": utc(answer.open_until_ms), "local_times": answer.local_times,
    });
    print(format, &value, || show(&answer))?;
    Ok(if answer.open { Verdict::Done } else { Verdict::Unhealthy })
}

fn show(answer: &CheckHoursResponse) {
    let place = answer.place.clone().unwrap_or_default();
    println!("zone        {}", place::describe(&place));
    println!(
        "region      {}",
        if place.regions.is_empty() { "unknown".to_owned() } else { place.regions.join(", ") }
    );
    println!("at          {}", utc(answer.at_ms).unwrap_or_default());
    answer.local_times.iter().for_each(|line| println!("            {line}"));
    answer.rules.iter().for_each(|line| println!("rule        {line}"));
    match (answer.open, utc(answer.opens_ms), utc(answer.open_until_ms)) {
        (true, _, None) => println!("may go now  no hours apply: {}", answer.exempt),
        (true, _, Some(until)) => println!("may go now  until {until}"),
        (false, Some(opens), until) => {
            println!("waits       until {opens}, then it may go until {}", until.unwrap_or_default());
        }
        (false, None, _) => println!("waits       there are no hours within a year"),
    }
}

fn utc(ms: u64) -> Option<String> {
    let ms = i64::try_from(ms).ok().filter(|ms| *ms > 0)?;
    Timestamp::from_millisecond(ms).ok().map(|at| at.to_string())
}

/// A moment, or a wall-clock time of the zone.
fn moment(text: &str, zone: &str) -> anyhow::Result<u64> {
    if let Some(local) = local_time::parse(text) {
        let zones = Some(zone).filter(|zone| !zone.is_empty());
        return zones
            .and_then(|zone| local_time::latest_ms([zone], local))
            .ok_or_else(|| anyhow::anyhow!("a time without an offset needs --zone with an IANA zone"));
    }
    let at: Timestamp = text.parse().map_err(|_| anyhow::anyhow!("not a time: {text}"))?;
    Ok(u64::try_from(at.as_millisecond())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_with_an_offset_or_where_the_zone_is() {
        let ms = |text: &str, zone: &str| moment(text, zone).ok();
        assert_eq!(ms("2026-12-03T15:00:00Z", ""), ms("2026-12-03T09:00", "America/Chicago"));
        assert_eq!(ms("2026-12-03T15:00:00Z", "").and_then(utc).as_deref(), Some("2026-12-03T15:00:00Z"));
        assert_eq!(ms("2026-12-03T09:00", ""), None);
        assert_eq!(ms("2026-12-03T09:00", "Mars/Olympus"), None);
        assert_eq!(ms("noon", "America/Chicago"), None);
    }
}
