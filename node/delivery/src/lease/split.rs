//! How tokens are split between the nodes that ask for them. A pure function of what they want.
use std::cmp::Reverse;
use std::time::Duration;

/// Of an equal part, what every node with work gets first: one part in so many.
const FLOOR: u32 = 4;
/// A node without work keeps one token for its first message when that costs no more than one part in so many.
const IDLE_COST: u32 = 128;

/// One node.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Claim {
    pub node_id: u64,
    /// Tokens that it could use.
    pub want: u32,
    /// It can use none of them unless it has so many.
    pub need: u32,
    /// Since when it has held any without a break.
    pub holds_since: Option<Duration>,
    /// When it last held any.
    pub held_until: Duration,
}

/// Of those that need more than their part one gets it for so many turns, then the next.
const NEED_TURNS: u32 = 4;

/// What each should have of `tokens`, in the order of the claims. All of it is given out if anybody is there.
pub(crate) fn split(tokens: u32, claims: &[Claim], turn: Duration, mono: Duration) -> Vec<u32> {
    let parts = evenly(tokens, claims, turn, mono);
    // Who needs a single one gets it in the ordinary turns.
    let is_short = |at: &usize| parts[*at] < claims[*at].need.min(tokens) && claims[*at].need.min(tokens) > 1;
    let short: Vec<usize> = (0..claims.len()).filter(is_short).collect();
    if short.is_empty() {
        return parts;
    }
    let turns = mono.as_nanos() / (turn * NEED_TURNS).as_nanos().max(1);
    let chosen = short[(turns % short.len() as u128) as usize];
    let need = claims[chosen].need.min(tokens);
    let mut others = claims.to_vec();
    (others[chosen].want, others[chosen].need) = (0, 0);
    // What is left is not enough for these: they take a part of it like the rest, until it is their turn.
    for other in others.iter_mut().filter(|other| other.need > tokens - need) {
        other.need = 0;
    }
    let mut parts = split(tokens - need, &others, turn, mono);
    parts[chosen] += need;
    parts
}

/// The same if tokens can be used one by one.
fn evenly(tokens: u32, claims: &[Claim], turn: Duration, mono: Duration) -> Vec<u32> {
    let wanting = claims.iter().filter(|claim| claim.want > 0).count() as u32;
    let wanted: u64 = claims.iter().map(|claim| u64::from(claim.want)).sum();
    if wanting == 0 || wanted < u64::from(tokens) {
        return generous(tokens, claims);
    }
    if tokens < wanting {
        return in_turn(tokens, claims, turn, mono);
    }
    by_demand(tokens, wanting, claims)
}

/// There is enough: what nobody wants is spread, so that whoever gets work can begin at once.
fn generous(tokens: u32, claims: &[Claim]) -> Vec<u32> {
    let mut parts: Vec<u32> = claims.iter().map(|claim| claim.want).collect();
    let left = tokens - parts.iter().sum::<u32>();
    let nodes = claims.len().max(1) as u32;
    for (place, part) in (0..).zip(&mut parts) {
        *part += left / nodes + u32::from(place < left % nodes);
    }
    parts
}

/// There is not one for each: turns, whoever has waited longest first. A turn that has begun lasts `turn`.
fn in_turn(tokens: u32, claims: &[Claim], turn: Duration, mono: Duration) -> Vec<u32> {
    let mut order: Vec<usize> = (0..claims.len()).filter(|at| claims[*at].want > 0).collect();
    order.sort_by_key(|at| {
        let claim = &claims[*at];
        let (class, since) = match claim.holds_since {
            Some(since) if mono.saturating_sub(since) < turn => (0, since),
            None => (1, claim.held_until),
            Some(since) => (2, since),
        };
        (class, since, claim.node_id)
    });
    let mut parts = vec![0; claims.len()];
    for at in order.into_iter().take(tokens as usize) {
        parts[at] = 1;
    }
    parts
}

/// Everybody with work has a floor; the rest goes by demand.
fn by_demand(tokens: u32, wanting: u32, claims: &[Claim]) -> Vec<u32> {
    let floor = (tokens / wanting / FLOOR).max(1);
    let idle = claims.len() as u32 - wanting;
    let mut keep = if idle.saturating_mul(IDLE_COST) <= tokens.saturating_sub(wanting) { idle } else { 0 };
    let first = |claim: &Claim| match claim.want {
        0 if keep > 0 => {
            keep -= 1;
            1
        }
        want => want.min(floor),
    };
    let mut parts: Vec<u32> = claims.iter().map(first).collect();
    let mut left = tokens.saturating_sub(parts.iter().sum());
    let open = |part: u32, claim: &Claim| claim.want.saturating_sub(part);
    let more: u64 = parts.iter().zip(claims).map(|(part, claim)| u64::from(open(*part, claim))).sum();
    let mut given = 0;
    for (part, claim) in parts.iter_mut().zip(claims) {
        let add = u64::from(left) * u64::from(open(*part, claim)) / more.max(1);
        *part += add as u32;
        given += add as u32;
    }
    left -= given;
    // Less than one for each is left; those who still want most, and of these the first.
    let mut order: Vec<usize> = (0..claims.len()).collect();
    order.sort_by_key(|at| (Reverse(open(parts[*at], &claims[*at])), claims[*at].node_id));
    for at in order.into_iter().take(left as usize) {
        parts[at] += u32::from(open(parts[at], &claims[at]) > 0);
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn claims(wants: &[u32]) -> Vec<Claim> {
        let claim = |(at, want): (usize, &u32)| Claim {
            node_id: at as u64 + 1,
            want: *want,
            need: 0,
            holds_since: None,
            held_until: Duration::from_millis(at as u64),
        };
        wants.iter().enumerate().map(claim).collect()
    }

    fn parts(tokens: u32, wants: &[u32]) -> Vec<u32> {
        split(tokens, &claims(wants), Duration::from_millis(200), Duration::from_secs(9))
    }

    #[test]
    fn what_nobody_wants_is_spread_and_what_all_want_is_split_evenly() {
        assert_eq!(parts(10, &[0, 0, 0]), [4, 3, 3]);
        assert_eq!(parts(60, &[10, 0, 0]), [27, 17, 16]);
        assert_eq!(parts(60, &[60, 60, 60]), [20, 20, 20]);
    }

    #[test]
    fn demand_weighs_and_a_little_work_gets_its_floor() {
        assert_eq!(parts(60, &[60, 60, 0]), [30, 30, 0]);
        let small = parts(60, &[60, 2, 0]);
        assert_eq!((small[0], small[1]), (58, 2));
        assert_eq!(parts(600, &[600, 0, 0]), [598, 1, 1], "a token for a first message costs little");
    }

    #[test]
    fn less_than_one_for_each_goes_in_turns() {
        let mut claims = claims(&[5, 5, 5]);
        let at = |ms| Duration::from_millis(ms);
        let now = |claims: &[Claim], ms| split(1, claims, at(200), at(ms));
        assert_eq!(now(&claims, 1_000), [1, 0, 0]);
        claims[0].holds_since = Some(at(1_000));
        assert_eq!(now(&claims, 1_100), [1, 0, 0], "its turn is not over");
        assert_eq!(now(&claims, 1_200), [0, 1, 0]);
        (claims[0].holds_since, claims[0].held_until) = (None, at(1_200));
        claims[1].holds_since = Some(at(1_200));
        assert_eq!(now(&claims, 1_500), [0, 0, 1]);
    }

    #[test]
    fn who_needs_several_at_once_gets_them_in_turns_and_the_others_the_rest() {
        let mut claims = claims(&[9, 9, 9]);
        let (turn, at) = (Duration::from_millis(200), |ms| Duration::from_millis(ms));
        assert_eq!(split(10, &claims, turn, at(0)).iter().max(), Some(&4));
        claims[1].need = 6;
        assert_eq!(split(10, &claims, turn, at(0)), [2, 6, 2]);
        claims[2].need = 20;
        assert_eq!(split(10, &claims, turn, at(0)), [2, 6, 2]);
        assert_eq!(split(10, &claims, turn, at(800)), [0, 0, 10], "longer than all of it: then it has all");
        claims[1].need = 3;
        assert_eq!(split(10, &claims, turn, at(0)), [0, 0, 10], "only one has less than it needs");
        // One token for all: whoever has it keeps it for its turn, however much it needs.
        claims.iter_mut().for_each(|claim| claim.need = 1);
        claims[2].holds_since = Some(at(700));
        assert_eq!(split(1, &claims, turn, at(800)), [0, 0, 1]);
    }

    proptest! {
        #[test]
        fn all_tokens_are_given_out_and_none_twice(
            tokens in 0_u32..3_000,
            wants in prop::collection::vec(0_u32..3_000, 1..8),
        ) {
            let wants: Vec<u32> = wants.into_iter().map(|want| want.min(tokens)).collect();
            let parts = parts(tokens, &wants);
            let wanted: u32 = wants.iter().sum();
            let sum: u32 = parts.iter().sum();
            prop_assert!(sum <= tokens);
            prop_assert!(sum == tokens, "{} of {} for {:?}", sum, tokens, wants);
            let wanting = wants.iter().filter(|want| **want > 0).count() as u32;
            for (part, want) in parts.iter().zip(&wants) {
                if wanted > tokens && tokens >= wanting {
                    prop_assert!(*want == 0 || *part > 0);
                    prop_assert!(*part <= (*want).max(1));
                }
                // When all of it is wanted, nodes without work may have kept one each.
                if wanted < tokens {
                    prop_assert!(part >= want);
                }
            }
        }
    }
}
