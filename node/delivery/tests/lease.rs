//! Leases: whatever happens to requests, nodes and grantors, no window holds more than the limit; and under backlog the limit is used.
use carillon_delivery::GateSettings;
use carillon_delivery::lease::{
    Grantor, Holder, LeaseAnswer, LeaseRequest, LeaseSettings, Limit, LimitId, LimitRule, Permit,
};
use rand::rngs::SmallRng;
use rand::{Rng, SeedableRng};
use std::collections::BTreeMap;
use std::time::Duration;

const LANE: LimitId = 7;
const MS: u64 = 1_000_000;

fn ns(n: u64) -> Duration {
    Duration::from_nanos(n)
}

/// A node: its clock, its lease, its backlog, and whether it is stopped.
struct Node {
    holder: Holder,
    /// Parts per million that its clock runs fast.
    drift: i64,
    backlog: u32,
    stopped_until: u64,
    /// The settings that it knows of.
    keeps: u64,
    /// A permit that was taken and not used, and when it is to be used.
    in_hand: Option<(Permit, u64)>,
}

impl Node {
    fn clock(&self, now: u64) -> Duration {
        clock(self.drift, now)
    }
}

fn clock(drift: i64, now: u64) -> Duration {
    ns(now.saturating_add_signed(now as i64 / 1_000_000 * drift))
}

enum Mail {
    Request(usize, LeaseRequest),
    /// Confirmed: the grantor of this term still led when it was asked.
    Confirmed(usize, LeaseRequest),
    Answer(usize, LeaseAnswer),
}

#[derive(Clone, Copy)]
struct Trouble {
    lost_permille: u32,
    delay_ms_max: u64,
    /// Chance in a million per millisecond that a node stops, restarts, or that another grantor takes over.
    stop: u32,
    restart: u32,
    leader: u32,
    drift: i64,
}

const CALM: Trouble = Trouble { lost_permille: 0, delay_ms_max: 4, stop: 0, restart: 0, leader: 0, drift: 0 };
const BAD: Trouble =
    Trouble { lost_permille: 100, delay_ms_max: 150, stop: 150, restart: 100, leader: 100, drift: 3_000 };

struct World {
    rng: SmallRng,
    trouble: Trouble,
    settings: LeaseSettings,
    nodes: Vec<Node>,
    /// Every grantor that ever was and may still believe that it leads; the last one does.
    grantors: Vec<Grantor>,
    led_since: u64,
    rule: LimitRule,
    /// Of the settings in force.
    stamp: u64,
    /// The last word that all keep to the settings of this stamp.
    settled: u64,
    /// Segments of each message; they leave together.
    size: u32,
    now: u64,
    mail: BTreeMap<(u64, u64), Mail>,
    mails: u64,
    sent: Vec<u64>,
    incarnations: u64,
}

impl World {
    fn new(seed: u64, limit: Limit, nodes: usize, trouble: Trouble) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let settings = LeaseSettings::default();
        let nodes = (0..nodes)
            .map(|at| Node {
                holder: Holder::new(settings, GateSettings::default(), at as u64 + 1, at as u64 + 1),
                drift: rng.random_range(-trouble.drift..=trouble.drift),
                backlog: 1_000_000,
                stopped_until: 0,
                keeps: 1,
                in_hand: None,
            })
            .collect::<Vec<_>>();
        let start = 100_000 * MS;
        let grantor = Grantor::new(settings, GateSettings::default(), ns(start));
        Self {
            rng,
            trouble,
            settings,
            incarnations: nodes.len() as u64,
            nodes,
            grantors: vec![grantor],
            led_since: start,
            rule: LimitRule::of(limit),
            stamp: 1,
            settled: 0,
            size: 1,
            now: start,
            mail: BTreeMap::new(),
            mails: 0,
            sent: Vec::new(),
        }
    }

    fn post(&mut self, mail: Mail) {
        if self.rng.random_range(0..1_000) < self.trouble.lost_permille {
            return;
        }
        self.mails += 1;
        let delay = self.rng.random_range(MS / 5..=self.trouble.delay_ms_max * MS);
        self.mail.insert((self.now + delay, self.mails), mail);
    }

    fn run(&mut self, ms: u64) {
        for _ in 0..ms {
            self.now += MS;
            self.disturb();
            while let Some(entry) = self.mail.first_entry()
                && entry.key().0 <= self.now
            {
                let mail = entry.remove();
                self.take(mail);
            }
            for node in 0..self.nodes.len() {
                self.turn(node);
            }
            let overdrawn = self.grantors.last().and_then(Grantor::overdrawn);
            assert_eq!(overdrawn, None, "at {} ms", self.now / MS);
        }
    }

    fn happens(&mut self, chance: u32) -> bool {
        chance > 0 && self.rng.random_range(0..1_000_000) < chance
    }

    fn disturb(&mut self) {
        let Trouble { stop, restart, leader, .. } = self.trouble;
        for node in 0..self.nodes.len() {
            if self.happens(stop) {
                self.nodes[node].stopped_until = self.now + self.rng.random_range(5..5_000) * MS;
            }
            if self.happens(restart) {
                self.incarnations += 1;
                let holder =
                    Holder::new(self.settings, GateSettings::default(), node as u64 + 1, self.incarnations);
                self.nodes[node].holder = holder;
                self.nodes[node].in_hand = None;
            }
            if self.happens(stop) {
                self.nodes[node].backlog = if self.rng.random_bool(0.5) { 0 } else { 1_000_000 };
            }
        }
        if self.happens(leader) {
            self.led_since = self.now;
            self.grantors.push(Grantor::new(self.settings, GateSettings::default(), ns(self.now)));
        }
    }

    fn take(&mut self, mail: Mail) {
        match mail {
            // Confirmed by a majority after it came, by whoever leads at that moment.
            Mail::Request(node, request) => self.post(Mail::Confirmed(node, request)),
            Mail::Confirmed(node, request) => {
                let rules = BTreeMap::from([(LANE, self.rule)]);
                let now = ns(self.now);
                let grantor = self.grantors.last_mut().expect("one leads");
                let answer = grantor.serve(&request, &rules, self.stamp, now);
                if let Some(answer) = answer {
                    if answer.settled {
                        self.settled = request.stamp;
                    }
                    self.post(Mail::Answer(node, answer));
                }
            }
            Mail::Answer(node, answer) => {
                let until = self.nodes[node].stopped_until;
                if until > self.now {
                    self.mails += 1;
                    self.mail.insert((until, self.mails), Mail::Answer(node, answer));
                    return;
                }
                let at = &mut self.nodes[node];
                let mono = at.clock(self.now);
                at.holder.answer(&answer, mono);
            }
        }
    }

    fn turn(&mut self, node: usize) {
        let now = self.now;
        let at = &mut self.nodes[node];
        if at.stopped_until > now {
            return;
        }
        let mono = at.clock(now);
        if at.holder.ask_at() <= mono {
            let request = at.holder.ask(&BTreeMap::from([(LANE, at.backlog)]), at.keeps, mono);
            self.post(Mail::Request(node, request));
        }
        loop {
            let at = &mut self.nodes[node];
            if let Some((permit, when)) = at.in_hand {
                if when > now {
                    return;
                }
                at.in_hand = None;
                // What a connector does right before the socket.
                if permit.fresh_until > mono {
                    self.sent.extend((0..self.size).map(|_| now));
                }
            }
            let at = &mut self.nodes[node];
            if at.backlog == 0 {
                return;
            }
            match at.holder.try_take_all(&[LANE], self.size, mono) {
                Err(_) => return,
                Ok(permit) => at.in_hand = Some((permit, now + self.rng.random_range(0..10) / 9 * MS)),
            }
        }
    }

    /// The most in any window of the contract.
    fn fullest(&self) -> usize {
        let window = self.rule.limit.window.as_nanos() as u64;
        let (mut first, mut most) = (0, 0);
        for (at, when) in self.sent.iter().enumerate() {
            while self.sent[first] + window <= *when {
                first += 1;
            }
            most = most.max(at + 1 - first);
        }
        most
    }

    /// Segments of the last so many milliseconds, of what the limit allows in them, in permille.
    fn used(&self, ms: u64) -> u64 {
        let since = self.now - ms * MS;
        let sent = self.sent.iter().filter(|at| **at > since).count() as u64;
        let allowed = u64::from(self.rule.limit.amount) * ms * MS;
        sent * 1_000 * self.rule.limit.window.as_nanos() as u64 / allowed
    }
}

fn limit(amount: u32, seconds: u64) -> Limit {
    Limit { amount, window: Duration::from_secs(seconds) }
}

const LIMITS: [(u32, u64); 8] = [(1, 1), (2, 1), (30, 1), (600, 1), (3_000, 1), (1, 10), (75, 60), (240, 60)];

#[test]
fn no_window_holds_more_than_the_limit_whatever_happens() {
    for (amount, seconds) in LIMITS {
        for seed in 0..6 {
            let nodes = [2, 3, 5][seed as usize % 3];
            let mut world = World::new(seed, limit(amount, seconds), nodes, BAD);
            // A single token that changes hands rests for a frame: six frames are few where answers are lost and nodes stop.
            world.run(if amount == 1 { 60_000.max(seconds * 24_000) } else { 60_000 });
            let most = world.fullest();
            assert!(most <= amount as usize, "{most} in {seconds} s, limit {amount}, seed {seed}");
            assert!(!world.sent.is_empty(), "limit {amount} in {seconds} s, seed {seed}");
        }
    }
}

#[test]
fn under_backlog_a_limit_is_used_to_97_percent_even_below_one_segment_a_node() {
    for (amount, seconds) in LIMITS {
        let mut world = World::new(3, limit(amount, seconds), 3, CALM);
        world.run(20_000 + 3_000);
        let ms = if seconds > 1 || amount < 10 { 240_000 } else { 30_000 };
        world.run(ms);
        let used = world.used(ms);
        println!("{amount} in {seconds} s: {used} permille");
        assert!(used >= 970, "{amount} in {seconds} s: {used} permille");
        assert!(world.fullest() <= amount as usize);
    }
}

#[test]
fn budget_follows_the_work_and_comes_back_with_it() {
    let mut world = World::new(5, limit(600, 1), 3, CALM);
    world.nodes[1].backlog = 0;
    world.nodes[2].backlog = 0;
    world.run(6_000);
    world.run(5_000);
    assert!(world.used(5_000) >= 970, "one node alone has {} permille", world.used(5_000));
    let held = |world: &World, node: usize| {
        let at = &world.nodes[node];
        at.holder.view(LANE, at.clock(world.now)).tokens
    };
    assert!(held(&world, 2) <= 2);
    world.nodes[2].backlog = 1_000_000;
    world.run(1_500);
    assert!(held(&world, 2) > 30, "it has its part of 75 tokens: {}", held(&world, 2));
    assert!(world.fullest() <= 600);
}

#[test]
fn whoever_begins_to_need_tokens_has_the_first_within_a_quarter_of_a_second() {
    let held = |world: &World, node: usize| {
        let at = &world.nodes[node];
        at.holder.view(LANE, at.clock(world.now)).tokens
    };
    for (amount, seconds) in [(30, 1), (90, 1), (120, 1), (600, 1), (3_000, 1), (75, 1)] {
        for seed in 0..40 {
            let mut world = World::new(seed, limit(amount, seconds), 3, Trouble { drift: 3_000, ..CALM });
            world.nodes[1].backlog = 0;
            world.nodes[2].backlog = 0;
            // Any moment between two requests of the one that holds everything.
            world.run(5_000 + 7 * seed);
            let mut waited = 0;
            world.nodes[1].backlog = 1;
            let mono = world.nodes[1].clock(world.now);
            world.nodes[1].holder.hurry(mono);
            while held(&world, 1) == 0 {
                world.run(1);
                waited += 1;
                assert!(waited <= 250, "{amount} a second, seed {seed}: nothing after {waited} ms");
            }
            // The most that can wait: its part is half of it, and the wall holds all the way.
            world.nodes[1].backlog = 1_000_000;
            world.run(4_000);
            assert!(held(&world, 1) >= held(&world, 0) / 2, "{amount} a second, seed {seed}");
            assert!(world.fullest() <= amount as usize, "{amount} a second, seed {seed}");
        }
    }
}

#[test]
fn a_new_grantor_renews_at_once_and_gives_nothing_new_for_one_lease() {
    let mut world = World::new(9, limit(600, 1), 3, CALM);
    world.nodes[0].backlog = 0;
    world.run(8_000);
    let before = world.sent.len();
    world.led_since = world.now;
    world.grantors.push(Grantor::new(world.settings, GateSettings::default(), ns(world.now)));
    world.run(900);
    let sent = world.sent.len() - before;
    assert!(sent > 500, "nobody stops for a new leader: {sent} in 900 ms");
    let tokens = |world: &World| -> u32 {
        world.nodes.iter().map(|at| at.holder.view(LANE, at.clock(world.now)).tokens).sum()
    };
    assert!(tokens(&world) <= 75);
    world.run(5_000);
    assert!(world.fullest() <= 600);
}

#[test]
fn a_paused_limit_sends_nothing_and_an_eased_one_that_much_less() {
    let mut world = World::new(11, limit(600, 1), 3, CALM);
    world.run(5_000);
    world.rule.paused = true;
    world.run(1_300);
    let before = world.sent.len();
    world.run(3_000);
    assert_eq!(world.sent.len(), before);
    world.rule = LimitRule { ease_permille: 500, ..LimitRule::of(world.rule.limit) };
    world.run(3_000);
    world.run(4_000);
    let used = world.used(4_000);
    assert!((460..=500).contains(&used), "{used} permille");
}

#[test]
fn another_limit_begins_when_the_old_one_is_at_rest() {
    for seed in 0..4 {
        let mut world = World::new(seed, limit(600, 1), 3, Trouble { lost_permille: 10, ..CALM });
        world.run(4_000);
        world.rule = LimitRule::of(limit(60, 1));
        world.run(2_600);
        world.sent.clear();
        world.run(6_000);
        assert!(world.fullest() <= 60, "{}", world.fullest());
        assert!(world.used(3_000) > 900, "{}", world.used(3_000));
    }
}

/// What nobody may do by older settings: a node that does not know of them counts what it sends.
#[test]
fn a_change_is_settled_when_nobody_can_send_by_the_old_settings_any_more() {
    for seed in 0..60 {
        let trouble = if seed % 2 == 0 { CALM } else { BAD };
        let mut world = World::new(seed, limit(600, 1), 3, trouble);
        world.run(5_000);
        world.stamp = 2;
        // One hears of it at once, one a little later, and one is cut off from all news until the end.
        world.nodes[0].keeps = 2;
        world.run(seed * 10);
        let alive = trouble.lost_permille == 0;
        assert!(!alive || world.settled != 2, "seed {seed}: two do not know of it and hold tokens");
        world.nodes[1].keeps = 2;
        let mut waited = 0;
        while world.settled != 2 {
            world.run(1);
            waited += 1;
            assert!(trouble.lost_permille > 0 || waited <= 1_300, "seed {seed}: {waited} ms");
        }
        let at = &world.nodes[2];
        assert_eq!(at.holder.view(LANE, at.clock(world.now)).tokens, 0, "seed {seed}: it could still send");
        world.run(2_000);
        let at = &world.nodes[2];
        assert_eq!(at.holder.view(LANE, at.clock(world.now)).tokens, 0, "seed {seed}: it got more");
        world.nodes[2].keeps = 2;
        world.run(20_000);
        let at = &world.nodes[2];
        let comes_back = at.stopped_until > world.now || at.holder.view(LANE, at.clock(world.now)).tokens > 0;
        assert!(comes_back || trouble.lost_permille > 0, "seed {seed}");
    }
}

#[test]
fn another_limit_is_settled_when_nobody_holds_tokens_of_the_old_one() {
    let mut world = World::new(4, limit(600, 1), 3, CALM);
    world.run(4_000);
    assert_eq!(world.settled, 1);
    (world.stamp, world.rule) = (2, LimitRule::of(limit(60, 1)));
    world.nodes.iter_mut().for_each(|at| at.keeps = 2);
    while world.settled != 2 {
        world.run(1);
    }
    let from = world.now + 10 * MS;
    world.run(4_000);
    world.sent.retain(|at| *at > from);
    assert!(world.fullest() <= 60, "{}", world.fullest());
}

#[test]
fn messages_that_leave_in_one_piece_find_their_tokens_on_every_node() {
    // Also where an equal part is too small for one message, and where the whole frame is.
    for (amount, seconds, size) in
        [(10, 1, 4), (4, 1, 3), (30, 1, 3), (120, 1, 10), (600, 1, 5), (75, 60, 4), (240, 60, 6)]
    {
        let one_grantor = Trouble { leader: 0, ..BAD };
        let troubles =
            [(CALM, 0), (CALM, 1), (BAD, 2), (BAD, 3), (one_grantor, 4), (one_grantor, 5), (one_grantor, 6)];
        for (trouble, seed) in troubles {
            let mut world = World::new(seed, limit(amount, seconds), 3, trouble);
            world.size = size;
            world.run(120_000);
            let most = world.fullest();
            let name = format!("{size} at once, {amount} in {seconds} s, seed {seed}");
            // What a node used ahead that dies together with the grantor is known to nobody; the bound is in DECISIONS.md.
            let unknown = if trouble.leader > 0 && seconds > 1 { size as usize - 1 } else { 0 };
            assert!(most <= amount as usize + unknown, "{name}: {most}");
            let used = world.used(100_000);
            println!("{name}: {used} permille, fullest {most}");
            let least = match (trouble.stop == 0, seconds) {
                (true, 1) => 300,
                (true, _) => 100,
                (false, 1) => 30,
                (false, _) => 0,
            };
            assert!(used > least, "{name}: {used} permille");
        }
    }
}

#[test]
fn shares_that_nodes_send_without_a_lease_are_not_given_out() {
    let mut world = World::new(2, limit(600, 1), 2, CALM);
    world.rule.fixed = 200;
    world.rule.fixed_nodes = 1;
    world.run(8_000);
    let used = world.used(5_000);
    assert!((600..=667).contains(&used), "{used} permille");
}
