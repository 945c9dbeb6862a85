//! The state of the simulated carrier and how PDUs change it.
//!
//! Owns: accounts, binds, the heap of delayed events, and the routing of one
//! decoded PDU to what it does. Everything is behind one lock that is taken
//! once for all PDUs of one read and once for all events of one tick; no call
//! here waits.
//! Bounds: `binds_max` binds an account; `pending_max` receipts and as many
//! delayed answers; see `truth`, `assembly`, `outbox` for theirs.
//! Does not: read sockets or clocks: times are given, in microseconds since
//! the start of the server.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, VecDeque};
use std::sync::Arc;

use hdrhistogram::Histogram;
use tokio::sync::mpsc;

use super::SmscConfig;
use super::assembly::Assembly;
use super::contract::Meter;
use super::journal::{Journal, Line};
use super::outbox::Outbox;
use super::profile::Profile;
use super::receipts::{Pending, Unacked};
use super::rest::{Job, Rest};
use super::stats::{Counters, Seconds, Timers};
use super::truth::Truth;
use super::wire::{self, BindKind, Frame, Inbound, status};

/// What the connection does after a PDU.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flow {
    Continue,
    /// Read nothing more; what is in the outbox is still written.
    Close,
}

/// An account of the carrier: one system_id.
pub struct Account {
    pub system_id: String,
    pub password: String,
    pub meter: Meter,
    /// Live binds that take receipts.
    pub receivers: Vec<u32>,
    pub next_receiver: usize,
    /// Receipts (slots) whose time has come.
    pub ready: VecDeque<u32>,
    pub binds: u32,
}

/// A connection, bound or not.
pub struct Bind {
    pub account: Option<u16>,
    pub kind: BindKind,
    pub outbox: Arc<Outbox>,
    pub dirty: bool,
    pub opened_at_us: u64,
    pub seen_at_us: u64,
    pub asked_at_us: Option<u64>,
    pub next_sequence: u32,
    pub unacked: HashMap<u32, Unacked>,
    /// (when to give up waiting, sequence), in sending order.
    pub deadlines: VecDeque<(u64, u32)>,
}

/// A delayed event.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Event {
    Answer { bind: u32, id: u64, sequence: u32, code: u32 },
    Receipt { slot: u32 },
    Callback { slot: u32 },
}

/// The carrier.
pub struct Center {
    pub config: Arc<SmscConfig>,
    pub profile: Profile,
    pub profile_at_us: u64,
    pub wall_at_start_us: u64,
    pub accounts: Vec<Account>,
    pub binds: HashMap<u32, Bind>,
    pub dirty: Vec<u32>,
    pub heap: BinaryHeap<Reverse<(u64, u64, Event)>>,
    pub event_order: u64,
    pub answers_waiting: usize,
    /// When the ticker wakes next, and whether it must wake sooner.
    pub wake_at_us: u64,
    pub wake_sooner: bool,
    pub pending: Vec<Option<Pending>>,
    pub free_slots: Vec<u32>,
    pub truth: Truth,
    pub assembly: Assembly,
    pub journal: Option<Journal>,
    pub counters: Counters,
    pub reported: Counters,
    pub seconds: Seconds,
    pub lag_us: Histogram<u64>,
    pub timers: Timers,
    /// Those that were there at the last look.
    pub violations_told: u64,
    pub rest: Option<Rest>,
}

impl Center {
    /// The state, and the callbacks that become due if there is an HTTP side.
    pub fn new(
        config: Arc<SmscConfig>,
        wall_at_start_us: u64,
        journal: Option<Journal>,
    ) -> (Self, Option<mpsc::Receiver<Job>>) {
        let account = |system_id: &str, password: &str, contract| Account {
            system_id: system_id.to_owned(),
            password: password.to_owned(),
            meter: Meter::new(contract),
            receivers: Vec::new(),
            next_receiver: 0,
            ready: VecDeque::new(),
            binds: 0,
        };
        let mut accounts: Vec<Account> =
            config.accounts.iter().map(|a| account(&a.system_id, &a.password, a.contract)).collect();
        let (rest, jobs) = config.rest.clone().map(|rest| Rest::new(rest, accounts.len() as u16)).unzip();
        if let Some(rest) = &config.rest {
            // No bind has a system_id so long.
            accounts.push(account(&rest.account_sid, &rest.auth_token, rest.contract));
        }
        // Ids begin with the second the server started in, so that a restarted
        // carrier does not give an id again.
        let first_id = (wall_at_start_us / 1_000_000) << 24;
        let mut center = Self {
            profile: config.profile.clone(),
            profile_at_us: 0,
            wall_at_start_us,
            accounts,
            binds: HashMap::new(),
            dirty: Vec::new(),
            heap: BinaryHeap::new(),
            event_order: 0,
            answers_waiting: 0,
            wake_at_us: 0,
            wake_sooner: false,
            pending: Vec::new(),
            free_slots: Vec::new(),
            truth: Truth::new(config.truth_key, config.records_max, first_id),
            assembly: Assembly::default(),
            journal,
            counters: Counters::default(),
            reported: Counters::default(),
            seconds: Seconds::default(),
            lag_us: Histogram::new_with_bounds(1, 60_000_000, 2).expect("the bounds are constants and valid"),
            timers: Timers::default(),
            violations_told: 0,
            rest,
            config,
        };
        let seed = center.config.seed;
        center.write_line(|at_us| Line::Open { at_us, seed }, 0);
        (center, jobs)
    }

    pub fn wall_us(&self, now_us: u64) -> u64 {
        self.wall_at_start_us + now_us
    }

    pub fn write_line(&mut self, line: impl FnOnce(u64) -> Line, now_us: u64) {
        let at_us = self.wall_us(now_us);
        if let Some(journal) = &mut self.journal {
            journal.add(&line(at_us));
        }
    }

    /// A new connection.
    pub fn connect(&mut self, id: u32, outbox: Arc<Outbox>, now_us: u64) {
        let bind = Bind {
            account: None,
            kind: BindKind::Transceiver,
            outbox,
            dirty: false,
            opened_at_us: now_us,
            seen_at_us: now_us,
            asked_at_us: None,
            next_sequence: 1,
            unacked: HashMap::new(),
            deadlines: VecDeque::new(),
        };
        self.binds.insert(id, bind);
        self.counters.connections += 1;
    }

    /// A connection has ended: what it had not acknowledged is sent elsewhere.
    pub fn disconnect(&mut self, id: u32, now_us: u64) {
        let Some(mut bind) = self.binds.remove(&id) else { return };
        let Some(account) = bind.account else { return };
        let at = usize::from(account);
        self.accounts[at].binds -= 1;
        self.accounts[at].receivers.retain(|receiver| *receiver != id);
        tracing::info!(bind = id, system_id = self.accounts[at].system_id, "bind ended");
        for (_, sequence) in std::mem::take(&mut bind.deadlines) {
            if let Some(unacked) = bind.unacked.remove(&sequence) {
                self.send_again(unacked.slot, None, now_us);
            }
        }
        self.dispatch(account, now_us);
    }

    /// Appends to the outbox of a bind; false when it is gone.
    pub fn put(&mut self, id: u32, put: impl FnOnce(&mut bytes::BytesMut)) -> bool {
        let Some(bind) = self.binds.get_mut(&id) else { return false };
        bind.outbox.append(put);
        if !bind.dirty {
            bind.dirty = true;
            self.dirty.push(id);
        }
        true
    }

    /// Wakes the writers of everything that was appended to.
    pub fn wake_writers(&mut self) {
        for id in self.dirty.drain(..) {
            if let Some(bind) = self.binds.get_mut(&id) {
                bind.dirty = false;
                bind.outbox.wake();
            }
        }
    }

    pub fn schedule(&mut self, at_us: u64, event: Event) {
        self.event_order += 1;
        self.heap.push(Reverse((at_us, self.event_order, event)));
        if at_us < self.wake_at_us {
            self.wake_at_us = at_us;
            self.wake_sooner = true;
        }
    }

    /// Handles one PDU of a connection.
    pub fn handle(&mut self, id: u32, frame: Frame, now_us: u64) -> Flow {
        let Some(bind) = self.binds.get_mut(&id) else { return Flow::Close };
        bind.seen_at_us = now_us;
        bind.asked_at_us = None;
        let (account, kind) = (bind.account, bind.kind);
        let Frame { command_id, sequence, body } = frame;
        let answer =
            |code| move |out: &mut _| wire::put_header(out, wire::answer_id(command_id), code, sequence);
        match (body, account) {
            (Inbound::Submit(submit), Some(account)) if kind.may_submit() => {
                return self.submit(id, account, sequence, &submit, now_us);
            }
            (Inbound::Bind { kind, system_id, password }, _) => {
                return self.bind(id, command_id, sequence, kind, &system_id, &password, now_us);
            }
            (Inbound::DeliverResp(code), Some(account)) => {
                self.receipt_answered(id, account, sequence, code, now_us);
            }
            (Inbound::GenericNack(code), Some(account)) => {
                // A peer that cannot read a receipt refuses it this way.
                self.receipt_answered(id, account, sequence, code.max(1), now_us);
            }
            (Inbound::EnquireLink, _) => {
                self.put(id, answer(status::ROK));
            }
            (Inbound::Unbind, _) => {
                self.put(id, answer(status::ROK));
                return Flow::Close;
            }
            (Inbound::UnbindResp, _) => return Flow::Close,
            (Inbound::Refused(code), Some(_)) => {
                self.put(id, answer(code));
            }
            (Inbound::Submit(_) | Inbound::Refused(_), _) => {
                self.counters.wrong_state += 1;
                self.put(id, answer(status::RINVBNDSTS));
            }
            (Inbound::Unsupported, _) => {
                self.counters.malformed += 1;
                let nack = wire::GENERIC_NACK;
                self.put(id, |out| wire::put_header(out, nack, status::RINVCMDID, sequence));
            }
            (Inbound::Malformed(code), _) => {
                self.counters.malformed += 1;
                self.put(id, answer(code));
            }
            (
                Inbound::EnquireLinkResp
                | Inbound::StrayAnswer
                | Inbound::DeliverResp(_)
                | Inbound::GenericNack(_),
                _,
            ) => {}
        }
        Flow::Continue
    }

    /// The stream of a connection makes no sense any more.
    pub fn lost_framing(&mut self, id: u32, sequence: u32) {
        self.counters.malformed += 1;
        self.put(id, |out| wire::put_header(out, wire::GENERIC_NACK, status::RINVCMDLEN, sequence));
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one bind PDU")]
    fn bind(
        &mut self,
        id: u32,
        command_id: u32,
        sequence: u32,
        kind: BindKind,
        system_id: &str,
        password: &str,
        now_us: u64,
    ) -> Flow {
        let refuse = |center: &mut Self, code| {
            center.counters.binds_refused += 1;
            tracing::warn!(bind = id, status = format!("{code:#010x}"), "bind refused");
            center.put(id, |out| wire::put_header(out, wire::answer_id(command_id), code, sequence));
        };
        let found = self.accounts.iter().position(|account| account.system_id == system_id);
        let code = match found.map(|at| &self.accounts[at]) {
            _ if self.binds.get(&id).is_some_and(|bind| bind.account.is_some()) => {
                refuse(self, status::RALYBND);
                return Flow::Continue;
            }
            None => Some(status::RINVSYSID),
            Some(account) if account.password != password => Some(status::RINVPASWD),
            Some(account) if account.binds >= self.config.binds_max => Some(status::RBINDFAIL),
            Some(_) => None,
        };
        let (Some(at), None, Some(bind)) = (found, code, self.binds.get_mut(&id)) else {
            refuse(self, code.unwrap_or(status::RBINDFAIL));
            return Flow::Close;
        };
        bind.account = Some(at as u16);
        bind.kind = kind;
        self.accounts[at].binds += 1;
        self.counters.binds_accepted += 1;
        tracing::info!(bind = id, system_id, ?kind, "bound");
        let server_id = self.config.server_id.clone();
        self.put(id, |out| wire::put_bind_ok(out, kind, sequence, &server_id));
        if kind.may_receive() {
            self.accounts[at].receivers.push(id);
            self.dispatch(at as u16, now_us);
        }
        Flow::Continue
    }

    /// Swaps the behaviour; storms count from now.
    pub fn set_profile(&mut self, profile: Profile, now_us: u64) {
        tracing::info!(profile = profile.name, "the profile is changed");
        self.profile = profile;
        self.profile_at_us = now_us;
    }

    /// Forgets everything counted so far. What was promised before (delayed
    /// answers and receipts) is still sent but no longer recorded.
    pub fn reset(&mut self, now_us: u64) {
        tracing::info!("counters and ground truth are reset");
        self.truth.reset();
        self.assembly = Assembly::default();
        self.counters = Counters::default();
        self.reported = Counters::default();
        self.seconds = Seconds::default();
        self.lag_us.reset();
        for account in &mut self.accounts {
            account.meter = Meter::new(account.meter.contract);
        }
        if let Some(rest) = &mut self.rest {
            rest.reset();
        }
        self.write_line(|at_us| Line::Reset { at_us }, now_us);
    }
}
