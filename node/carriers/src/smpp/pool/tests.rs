//! Tests of the pool of binds.
use super::super::config::{SmppConfig, SmppTuning};
use super::*;
use crate::clear::Clear;
use crate::contract::{ContractHandle, SMPP_GENERIC};
use carillon_proto::internal::SmppSettings;
use futures::FutureExt as _;

fn pool(binds: u32, window: u32) -> Arc<Pool> {
    pool_with(binds, window, ContractHandle::built_in(SMPP_GENERIC).unwrap())
}

fn pool_with(binds: u32, window: u32, contract: ContractHandle) -> Arc<Pool> {
    let settings = SmppSettings {
        address: "localhost:2775".into(),
        system_id: "carillon".into(),
        binds_per_node: binds,
        window,
        enquire_link_ms: 1_000,
        response_timeout_ms: 1_000,
        source_address: "12345".into(),
        throttle_pause_ms: 1_000,
        ..SmppSettings::default()
    };
    let (password, tuning) = (Clear::new(String::new()), SmppTuning::default());
    let carrier = "test".into();
    let config = SmppConfig { carrier, settings, password, contract, default_ca_pem: None, tuning };
    Pool::new(Account::check(config).unwrap())
}

/// All seats that are free now.
fn take_all(pool: &Arc<Pool>) -> Vec<Seat> {
    std::iter::from_fn(|| pool.seat().now_or_never()).collect()
}

fn up(pool: &Pool, slot: usize) -> (u64, mpsc::Receiver<Submission>) {
    let (submissions, receiver) = mpsc::channel(1);
    (pool.session_up(slot, submissions), receiver)
}

#[test]
fn seats_are_the_windows_of_the_live_binds() {
    let pool = pool(2, 3);
    assert_eq!(take_all(&pool).len(), 0);
    let (first, _receiver) = up(&pool, 0);
    let (_second, _receiver) = up(&pool, 1);
    let seats = take_all(&pool);
    assert_eq!(seats.len(), 6);
    assert_eq!(seats.iter().filter(|seat| seat.slot == 0).count(), 3);
    // The first bind goes with all of its seats out: they must not come back.
    pool.session_down(0, first);
    pool.session_down(0, first);
    drop(seats);
    let seats = take_all(&pool);
    assert_eq!(seats.iter().map(|seat| seat.slot).collect::<Vec<_>>(), [1, 1, 1]);
    // A new session of the slot has a window of its own, and old seats do not touch it.
    let (again, _receiver) = up(&pool, 0);
    drop(seats);
    assert_eq!(take_all(&pool).len(), 6);
    pool.session_down(0, first);
    assert_eq!(pool.view().binds_up, 2);
    pool.session_down(0, again);
    assert_eq!((pool.view().binds_up, take_all(&pool).len()), (1, 3));
}

/// A waiter that was granted a permit but has not run yet when the bind goes: the permit is worth nothing.
#[test]
fn permits_granted_before_a_bind_went_are_worth_nothing() {
    let pool = pool(1, 2);
    let mut waiter = Box::pin(pool.seat());
    assert!(waiter.as_mut().now_or_never().is_none());
    let (generation, _receiver) = up(&pool, 0);
    pool.session_down(0, generation);
    assert_eq!(pool.inner.lock().debt, 1);
    assert!(waiter.as_mut().now_or_never().is_none());
    assert_eq!(pool.inner.lock().debt, 0);
    let (_generation, _receiver) = up(&pool, 0);
    let seat = waiter.now_or_never().expect("the new bind has a seat");
    assert_eq!((seat.generation, take_all(&pool).len()), (2, 1));
}

#[test]
fn the_state_is_the_best_of_the_binds() {
    let pool = pool(2, 1);
    assert_eq!(pool.view().state(), ConnectorState::Down);
    let soon = Instant::now() + Duration::from_secs(1);
    pool.waiting(0, soon, Some(0x0e));
    assert_eq!(pool.view().state(), ConnectorState::Broken { status: 0x0e });
    // The other one is still being tried: there is hope.
    assert_eq!(pool.view().next_try, None);
    pool.waiting(1, soon + Duration::from_secs(1), None);
    assert_eq!(pool.view().next_try, Some(soon));
    let (_generation, _receiver) = up(&pool, 1);
    assert_eq!((pool.view().state(), pool.view().next_try), (ConnectorState::Up, None));
    pool.advance(Phase::Leaving);
    pool.advance(Phase::Draining);
    assert_eq!((pool.view().phase, pool.view().state()), (Phase::Leaving, ConnectorState::Draining));
}

#[test]
fn a_pause_only_gets_longer() {
    let pool = pool(1, 1);
    let long = pool.pause(3);
    assert!(long >= Duration::from_millis(2_999) && long <= Duration::from_millis(3_600), "{long:?}");
    let until = pool.paused_until().unwrap();
    pool.pause(1);
    assert_eq!(pool.paused_until(), Some(until));
}

#[test]
fn turns_of_a_bind_keep_its_limit_in_every_window_and_use_it() {
    for most in [1, 7, 10, 100] {
        let period = (Duration::from_secs(1) + PACE_SLACK) / most;
        let begin = Instant::now();
        let (mut free_at, mut turns) = (begin + period, Vec::new());
        // Somebody looks every 1 to 3 ms, and not at all for half of every third second.
        let mut at = Duration::ZERO;
        while at < Duration::from_secs(20) {
            at += Duration::from_micros(1_000 + u64::from(at.subsec_micros()) % 2_000);
            let idle = at.as_secs() % 3 == 2 && at.subsec_millis() < 500;
            if !idle && take_turn(&mut free_at, period, begin + at) {
                turns.push(at);
            }
        }
        let second = |from: &Duration| {
            turns.iter().filter(|at| (*from..*from + Duration::from_secs(1)).contains(*at)).count()
        };
        let fullest = turns.iter().map(second).max().unwrap();
        assert!(fullest <= most as usize, "{fullest} of {most}");
        assert!(turns.len() as u32 >= most * 20 * 70 / 100, "{} turns at {most} a second", turns.len());
    }
}

#[test]
fn a_bind_begins_without_credit_and_one_without_a_limit_has_no_turns() {
    let text = include_str!("../../../contracts/smpp-generic.toml");
    let limited = text.replace("[limits]\n", "[limits]\nbind_segments_per_second_max = 1\n");
    assert_ne!(limited, text);
    let contract = crate::contract::Contract::parse("x.toml", &limited).unwrap();
    let slow = pool_with(2, 5, ContractHandle::fixed(contract));
    let (_session, _receiver) = up(&slow, 0);
    let seats = take_all(&slow);
    assert!(
        seats.len() == 5 && seats.iter().all(|seat| !seat.take_turn() && seat.free_at() > Instant::now())
    );
    let free = pool(1, 5);
    let (_session, _receiver) = up(&free, 0);
    assert!(take_all(&free).iter().all(Seat::take_turn));
}
