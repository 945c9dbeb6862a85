//! `carillonctl route ...`: rules that choose carriers and senders, by weight and health. See deploy/runbooks/carriers.md.
use super::Verdict;
use super::backup::Everyone;
use super::output::{Format, print, table};
use carillon_proto::internal::{RouteRecord, RouteTarget};
use carillon_proto::public::MessageClass;
use clap::Subcommand;
use serde_json::json;

#[derive(Debug, Subcommand)]
pub enum RouteCommand {
    /// The rules in the order in which they are looked at.
    List {
        #[command(flatten)]
        nodes: Everyone,
    },
    /// Make a rule, or change the one of this name.
    Put {
        #[command(flatten)]
        nodes: Everyone,
        name: String,
        /// Rules with lower ranks are looked at first.
        #[arg(long, default_value_t = 100)]
        rank: u32,
        /// carrier=weight or carrier:sender=weight; weight 0: only while no other can be used. Without a sender it is one of the
        /// carrier's. May be repeated.
        #[arg(long = "to", required = true, value_parser = target)]
        to: Vec<RouteTarget>,
        #[arg(long, default_value = "")]
        tenant: String,
        #[arg(long, default_value = "", requires = "tenant")]
        practice: String,
        /// For example reminder or staff; may be repeated.
        #[arg(long, value_parser = class)]
        class: Vec<i32>,
        /// Beginning of the recipient's number, for example +1416; may be repeated.
        #[arg(long)]
        prefix: Vec<String>,
    },
    /// Take a rule away.
    Drop {
        #[command(flatten)]
        nodes: Everyone,
        name: String,
    },
}

fn target(text: &str) -> Result<RouteTarget, String> {
    let (way, weight) = text.rsplit_once('=').ok_or("carrier=weight or carrier:sender=weight")?;
    let weight = weight.parse().map_err(|_| "the weight is not a number".to_owned())?;
    let (carrier, sender) = way.split_once(':').unwrap_or((way, ""));
    Ok(RouteTarget { carrier: carrier.to_owned(), weight, sender: sender.to_owned() })
}

fn class(text: &str) -> Result<i32, String> {
    let name = format!("MESSAGE_CLASS_{}", text.to_ascii_uppercase());
    let class =
        MessageClass::from_str_name(&name).ok_or("unknown class; see MessageClass in messages.proto")?;
    Ok(class as i32)
}

pub async fn run(command: RouteCommand, format: Format) -> anyhow::Result<Verdict> {
    match command {
        RouteCommand::List { nodes } => {
            let nodes = nodes.connect()?;
            let statuses = nodes.statuses().await?;
            show(format, &statuses[0].1.routes().await?)
        }
        RouteCommand::Put { nodes, name, rank, to, tenant, practice, class, prefix } => {
            let nodes = nodes.connect()?;
            let statuses = nodes.statuses().await?;
            let route = RouteRecord {
                route_no: 0,
                name,
                rank,
                tenant,
                practice,
                classes: class,
                number_prefixes: prefix,
                targets: to,
            };
            statuses[0].1.put_route(route).await?;
            show(format, &statuses[0].1.routes().await?)
        }
        RouteCommand::Drop { nodes, name } => {
            let nodes = nodes.connect()?;
            let statuses = nodes.statuses().await?;
            statuses[0].1.drop_route(&name).await?;
            show(format, &statuses[0].1.routes().await?)
        }
    }
}

fn show(format: Format, routes: &[RouteRecord]) -> anyhow::Result<Verdict> {
    let any = |text: String| if text.is_empty() { "any".to_owned() } else { text };
    let row = |route: &RouteRecord| {
        let classes = route.classes.iter().filter_map(|class| MessageClass::try_from(*class).ok());
        let classes: Vec<&str> =
            classes.map(|class| class.as_str_name().trim_start_matches("MESSAGE_CLASS_")).collect();
        let target = |t: &RouteTarget| match t.sender.as_str() {
            "" => format!("{}={}", t.carrier, t.weight),
            sender => format!("{}:{sender}={}", t.carrier, t.weight),
        };
        let targets: Vec<String> = route.targets.iter().map(target).collect();
        let practice = if route.tenant.is_empty() {
            String::new()
        } else {
            format!("{}/{}", route.tenant, route.practice)
        };
        vec![
            route.rank.to_string(),
            route.name.clone(),
            any(practice),
            any(classes.join(",")),
            any(route.number_prefixes.join(",")),
            targets.join(" "),
        ]
    };
    let rows: Vec<Vec<String>> = routes.iter().map(row).collect();
    let value: Vec<_> = rows
        .iter()
        .map(|r| {
            json!({ "rank": r[0], "name": r[1], "practice": r[2], "classes": r[3], "prefixes": r[4], "to": r[5] })
        })
        .collect();
    print(format, &value, || table(&["RANK", "NAME", "PRACTICE", "CLASSES", "PREFIXES", "TO"], &rows))?;
    Ok(Verdict::Done)
}
