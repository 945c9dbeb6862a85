//! What one run does, drawn from its seed before it starts (swarm testing: each seed enables its own subset of faults
//! with its own weights). Because faults are data with a time, a failing run can be cut: fewer faults, an earlier end.
use super::draw::{KEPT_S, faults, levels, more_faults, rates};
use super::nights;
use super::plant::Plant;
use super::rng::Rng;
use super::settings::{BEFORE_MIDNIGHT_MS, MIDNIGHT_MS, Settings};
use super::world::START_MS;
use std::collections::BTreeSet;

/// Trouble that begins at a moment. Nodes are indexes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// The process dies; what it wrote stays in the page cache.
    Kill {
        node: usize,
        down_ms: u64,
    },
    /// Power loss: what was not synced is lost, but for a part.
    Power {
        node: usize,
        down_ms: u64,
    },
    /// Power loss of every node at once.
    PowerAll {
        down_ms: u64,
    },
    /// The process stands still while the clocks run on.
    Freeze {
        node: usize,
        ms: u64,
    },
    /// Links (from, to) that lose everything.
    Cut {
        links: Vec<(usize, usize)>,
        ms: u64,
    },
    /// Links that deliver nothing until the end, and then everything.
    Clog {
        links: Vec<(usize, usize)>,
        ms: u64,
    },
    /// Clients cannot reach the node.
    ClientsCut {
        node: usize,
        ms: u64,
    },
    /// The node has no connection to the carriers.
    CarrierCut {
        node: usize,
        ms: u64,
    },
    /// A carrier answers "too fast" to everything.
    Throttle {
        carrier: usize,
        ms: u64,
    },
    /// A carrier takes messages over and says nothing.
    Hang {
        carrier: usize,
        ms: u64,
    },
    SlowDisk {
        node: usize,
        factor: u64,
        ms: u64,
    },
    /// The next sync fails.
    SyncError {
        node: usize,
        down_ms: u64,
    },
    DiskFull {
        node: usize,
        ms: u64,
    },
    /// A row of a replica's flushed state rots.
    Rot {
        node: usize,
        group: u32,
        pick: u64,
    },
    /// A durable entry of a replica's log rots.
    RotLog {
        node: usize,
        group: u32,
        pick: u64,
    },
    /// Somebody else's files leave little room on a node's disk.
    NearlyFull {
        node: usize,
        ms: u64,
    },
    /// The same on every node but one.
    MostNearlyFull {
        but: usize,
        ms: u64,
    },
    /// An operator makes a backup.
    Backup,
    /// Every disk of the cluster is lost; after a while the newest backup, if there is one, is restored into a new cluster.
    LoseAll {
        down_ms: u64,
    },
    ClockJump {
        node: usize,
        delta_ms: i64,
    },
    /// The node never comes back.
    Lose {
        node: usize,
    },
    /// The disk is gone; somebody starts the node again with an empty one.
    Wipe {
        node: usize,
        down_ms: u64,
    },
    /// A new node comes with a token.
    Join,
    Drain {
        node: usize,
        ms: u64,
    },
    Decommission {
        node: usize,
    },
    /// The node stops and is started with the newest program.
    Upgrade {
        node: usize,
    },
    /// An operator pauses a practice on its carrier.
    PausePractice {
        practice: u32,
        ms: u64,
    },
    /// An operator opens the breaker of a carrier.
    OpenBreaker {
        carrier: usize,
        ms: u64,
    },
    /// An operator moves a leader.
    Transfer {
        group: u32,
        to: usize,
    },
}

impl Fault {
    /// The class that a shrunken run can leave out.
    pub fn class(&self) -> Class {
        match self {
            Self::Kill { .. } => Class::Kill,
            Self::Power { .. } | Self::PowerAll { .. } => Class::Power,
            Self::Freeze { .. } => Class::Freeze,
            Self::Cut { .. } => Class::Cut,
            Self::Clog { .. } => Class::Clog,
            Self::ClientsCut { .. } => Class::ClientsCut,
            Self::CarrierCut { .. }
            | Self::Throttle { .. }
            | Self::Hang { .. }
            | Self::OpenBreaker { .. }
            | Self::PausePractice { .. } => Class::Carrier,
            Self::SlowDisk { .. } => Class::SlowDisk,
            Self::SyncError { .. } | Self::DiskFull { .. } => Class::DiskError,
            Self::Rot { .. } | Self::RotLog { .. } => Class::Rot,
            Self::NearlyFull { .. } | Self::MostNearlyFull { .. } => Class::Space,
            Self::Backup | Self::LoseAll { .. } => Class::Restore,
            Self::ClockJump { .. } => Class::Clock,
            Self::Lose { .. } | Self::Wipe { .. } => Class::Lose,
            Self::Join | Self::Drain { .. } | Self::Decommission { .. } => Class::Churn,
            Self::Upgrade { .. } => Class::Upgrade,
            Self::Transfer { .. } => Class::Transfer,
        }
    }
}

/// Classes of timed faults.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    Kill,
    Power,
    Freeze,
    Cut,
    Clog,
    ClientsCut,
    Carrier,
    SlowDisk,
    DiskError,
    Rot,
    Clock,
    Lose,
    Transfer,
    Churn,
    /// Not drawn with the others: comes with older programs.
    Upgrade,
    /// Nor these, which have a stream of their own.
    Space,
    Restore,
}

/// What goes wrong all the time, in permille of the occasions, and how long things take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rates {
    pub drop: u64,
    pub duplicate: u64,
    pub net_ms_max: u64,
    pub disk_ms_max: u64,
    pub apply_ms_max: u64,
    pub flush_ms_max: u64,
    /// Of clients' calls and answers.
    pub call_lost: u64,
    pub carrier: CarrierRates,
}

/// What a carrier does to single messages, in permille.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CarrierRates {
    pub ms_max: u64,
    pub request_lost: u64,
    pub answer_lost: u64,
    pub answer_late: u64,
    pub answer_twice: u64,
    pub throttled: u64,
    pub transient: u64,
    pub rejected: u64,
    pub receipt_lost: u64,
    pub receipt_twice: u64,
    pub receipt_before_answer: u64,
    pub receipt_enroute: u64,
    pub undelivered: u64,
}

/// A run.
#[derive(Debug, Clone)]
pub struct Plan {
    pub seed: u64,
    pub nodes: usize,
    pub partitions: u32,
    /// How long faults and new calls go on; then everything is healed and must come to an end.
    pub safety_ms: u64,
    pub ops_per_second: u64,
    pub rates: Rates,
    pub faults: Vec<(u64, Fault)>,
    /// Small limits everywhere, so that batches are split, windows are full and pages are short.
    pub small_limits: bool,
    /// Entries kept for followers that are behind; one that is further behind gets a snapshot.
    pub log_slack: u64,
    /// Segments per second of each carrier.
    pub limits: Vec<u32>,
    pub practices: u32,
    /// Entries of one group that a leader has appended and not applied.
    pub in_flight_max: usize,
    /// Permille of the submits that come without a key, are repeats, and are long.
    pub keyless: u64,
    pub repeats: u64,
    pub long: u64,
    /// Permille of the calls that are opt-outs.
    pub stops: u64,
    /// Feature level of each founder's program at first.
    pub levels: Vec<u32>,
    /// Permille of its looks at which the operator sees to what is damaged, and whether it replaces what is lost.
    pub care: u64,
    pub replaces: bool,
    /// How long final messages and idempotency keys are kept.
    pub finals_kept_s: u64,
    pub keys_kept_s: u64,
    /// Recipients have hours, some of which end or begin within the run.
    pub nights: bool,
    /// What operators set besides.
    pub settings: Settings,
    /// Wall clock offset (ms) and drift (ppm) of each node.
    pub clocks: Vec<(i64, i64)>,
    /// How far a stamp may be from the true time: only for plans in which one clock at a time is wrong.
    pub stamp_error_ms_max: Option<u64>,
    pub plant: Option<Plant>,
    /// Off: promises are not compared with the disk, so that a planted bug must be found by what it causes.
    pub check_promises: bool,
}

/// What a cut run leaves out.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Cuts {
    /// Numbers of the faults in the plan.
    pub faults: BTreeSet<usize>,
    pub until_ms: Option<u64>,
    /// No background faults of the network and of the carriers.
    pub calm_net: bool,
    pub calm_carriers: bool,
}

impl Plan {
    pub fn of_seed(seed: u64) -> Self {
        let mut rng = Rng::stream(seed, "plan");
        let nodes = rng.pick(&[3, 3, 3, 5]);
        let partitions = rng.within(2, 4) as u32;
        let safety_ms = rng.pick(&[10_000, 20_000, 20_000, 30_000]);
        let rates = rates(&mut Rng::stream(seed, "rates"));
        let mut clock = Rng::stream(seed, "clocks");
        let skewed = clock.chance(500);
        let clocks = (0..nodes)
            .map(|_| match skewed {
                true => (clock.below(4000) as i64 - 2000, clock.below(800) as i64 - 400),
                false => (0, 0),
            })
            .collect();
        let (levels, upgrades) = levels(&mut Rng::stream(seed, "levels"), nodes, safety_ms);
        let mut faults = faults(&mut Rng::stream(seed, "faults"), nodes, partitions, safety_ms);
        faults.extend(upgrades);
        faults.extend(more_faults(&mut Rng::stream(seed, "more faults"), nodes, partitions, safety_ms));
        let (finals_kept_s, keys_kept_s) = Rng::stream(seed, "retention").pick(&KEPT_S);
        let mut operator = Rng::stream(seed, "care");
        let mut settings = Settings::of_seed(seed, 6, 2);
        let mut hands = Rng::stream(seed, "hands");
        if hands.chance(400) {
            settings.routed = true;
            let (carrier, ms) = (hands.below(2) as usize, hands.within(1_000, 6_000));
            faults.push((hands.within(6_000, safety_ms), Fault::OpenBreaker { carrier, ms }));
        }
        Self {
            seed,
            nodes,
            partitions,
            safety_ms,
            ops_per_second: rng.pick(&[3, 8, 20, 40]),
            rates,
            faults,
            stops: Rng::stream(seed, "stops").pick(&[0, 10, 40]),
            levels,
            care: operator.pick(&[0, 20, 200]),
            replaces: operator.chance(700),
            nights: Rng::stream(seed, "nights").chance(250),
            small_limits: rng.chance(500),
            log_slack: Rng::stream(seed, "slack").pick(&[4, 4, 20, 100_000]),
            limits: vec![rng.pick(&[6, 20, 60]), rng.pick(&[10, 100])],
            practices: 6,
            settings,
            in_flight_max: Rng::stream(seed, "in flight").pick(&[2, 2, 4, 16]),
            keyless: rng.pick(&[0, 100, 500]),
            repeats: rng.pick(&[0, 100, 300]),
            long: rng.pick(&[0, 100, 400]),
            finals_kept_s,
            keys_kept_s,
            clocks,
            stamp_error_ms_max: None,
            plant: None,
            check_promises: true,
        }
    }

    /// What right clocks show at the begin.
    pub fn start_ms(&self) -> u64 {
        match (self.nights, self.settings.midnight) {
            (true, _) => nights::BEGIN_MS,
            (false, true) => MIDNIGHT_MS - BEFORE_MIDNIGHT_MS,
            (false, false) => START_MS,
        }
    }

    /// The same run without some of its trouble.
    pub fn without(mut self, cuts: &Cuts) -> Self {
        let kept = self.faults.into_iter().enumerate().filter(|(n, _)| !cuts.faults.contains(n));
        self.faults = kept.map(|(_, fault)| fault).collect();
        if let Some(until_ms) = cuts.until_ms {
            self.safety_ms = self.safety_ms.min(until_ms);
        }
        if cuts.calm_net {
            self.rates.drop = 0;
            self.rates.duplicate = 0;
            self.rates.call_lost = 0;
        }
        if cuts.calm_carriers {
            self.rates.carrier =
                CarrierRates { ms_max: self.rates.carrier.ms_max, ..CarrierRates::default() };
        }
        self
    }
}
