//! Practices get their shares, and none of them starves.
use super::*;
use carillon_proto::Slot;

const FAR: u64 = 1_000_000;

fn id(n: u64) -> MessageId {
    MessageId::new(7, Slot::new(9).unwrap(), n)
}

/// Messages `first..first + count` of a practice, of one deadline.
fn fill(fair: &mut Fair, practice_no: u32, first: u64, count: u64, useful_until: u64) {
    for n in first..first + count {
        fair.insert((practice_no, 0), (useful_until, id(n)), n as CellNo, false);
    }
}

/// Chooses so many messages of one segment each; deadlines before 1,000 are near.
fn choose(fair: &mut Fair, count: usize, weight: impl Fn(u32) -> u32) -> Vec<u32> {
    (0..count)
        .map(|_| {
            let ((practice_no, _), key, _) = fair.first(1_000).expect("something is ready");
            fair.charge((practice_no, 0), &key, false, 1, weight(practice_no));
            practice_no
        })
        .collect()
}

fn count(chosen: &[u32], practice_no: u32) -> usize {
    chosen.iter().filter(|p| **p == practice_no).count()
}

#[test]
fn practices_take_turns_and_one_that_joins_goes_next() {
    let mut fair = Fair::default();
    fill(&mut fair, 1, 0, 1_000, FAR);
    choose(&mut fair, 500, |_| 1);
    fill(&mut fair, 2, 5_000, 1, FAR);
    assert_eq!(choose(&mut fair, 3, |_| 1), [2, 1, 1]);
    fill(&mut fair, 3, 6_000, 100, FAR);
    fill(&mut fair, 2, 7_000, 100, FAR);
    let chosen = choose(&mut fair, 99, |_| 1);
    for practice_no in 1..=3 {
        assert!((32..=34).contains(&count(&chosen, practice_no)), "{chosen:?}");
    }
}

#[test]
fn shares_follow_the_weights_and_count_segments() {
    let mut fair = Fair::default();
    (1..=3).for_each(|p| fill(&mut fair, p, u64::from(p) * 10_000, 2_000, FAR));
    let chosen = choose(&mut fair, 1_000, |p| if p == 3 { 8 } else { 1 });
    assert!((797..=803).contains(&count(&chosen, 3)), "{}", count(&chosen, 3));
    // Practice 1 sends long texts: it gets as many segments, and fewer messages.
    let mut sent = [0; 2];
    let mut fair = Fair::default();
    (1..=2).for_each(|p| fill(&mut fair, p, u64::from(p) * 10_000, 1_000, FAR));
    while sent.iter().sum::<u32>() < 600 {
        let ((practice_no, _), key, _) = fair.first(0).unwrap();
        let segments = if practice_no == 1 { 10 } else { 1 };
        fair.charge((practice_no, 0), &key, false, segments, 1);
        sent[practice_no as usize - 1] += segments;
    }
    assert!(sent[0].abs_diff(sent[1]) <= 10, "{sent:?}");
}

#[test]
fn coming_and_going_gains_nothing() {
    let mut fair = Fair::default();
    fill(&mut fair, 1, 0, 1_000, FAR);
    // Practice 2 is never there with more than one message, and always at once with the next.
    let mut chosen = Vec::new();
    for n in 0..100 {
        fill(&mut fair, 2, 10_000 + n, 1, FAR);
        chosen.extend(choose(&mut fair, 2, |_| 1));
        while let Some((_, key, _)) = fair.first(0).filter(|((p, _), ..)| *p == 2) {
            fair.remove((2, 0), &key, false);
        }
    }
    assert!((90..=101).contains(&count(&chosen, 2)), "{}", count(&chosen, 2));
}

#[test]
fn a_near_deadline_goes_first_on_credit_that_ends() {
    let mut fair = Fair::default();
    fill(&mut fair, 1, 0, 1_000, FAR);
    choose(&mut fair, 10, |_| 1);
    // Everything of practice 2 is about to be useless.
    fill(&mut fair, 2, 5_000, 1_000, 500);
    let chosen = choose(&mut fair, 200, |_| 1);
    assert_eq!(count(&chosen[..16], 2), 16, "ahead of its turn");
    assert!((105..=110).contains(&count(&chosen, 2)), "but no more than its share and the credit");
    assert!(chosen[20..].windows(4).all(|turn| count(turn, 1) >= 1), "and nobody is starved");
    // A third one is not behind the second.
    fill(&mut fair, 3, 9_000, 1, 900);
    assert_eq!(count(&choose(&mut fair, 2, |_| 1), 3), 1);
}

#[test]
fn a_paused_practice_waits_and_comes_back_without_arrears() {
    let mut fair = Fair::default();
    (1..=2).for_each(|p| fill(&mut fair, p, u64::from(p) * 10_000, 500, FAR));
    fair.pause(1, true);
    assert_eq!(count(&choose(&mut fair, 100, |_| 1), 1), 0);
    assert_eq!(fair.ready(), 900);
    fair.pause(1, false);
    let chosen = choose(&mut fair, 100, |_| 1);
    assert!((49..=51).contains(&count(&chosen, 1)), "{}", count(&chosen, 1));
    // Paused while it has nothing: what comes waits.
    fair.pause(3, true);
    fill(&mut fair, 3, 90_000, 5, FAR);
    assert_eq!(count(&choose(&mut fair, 50, |_| 1), 3), 0);
}

#[test]
fn nothing_is_kept_of_practices_that_are_gone() {
    let mut fair = Fair::default();
    for n in 0..1_000 {
        fill(&mut fair, n, u64::from(n), 1, FAR);
    }
    choose(&mut fair, 1_000, |_| 1);
    assert!(fair.ready() == 0 && fair.shares.is_empty() && fair.ahead.is_empty() && fair.order.is_empty());
    assert_eq!((fair.round, fair.heads.len()), (0, 0));
}

#[test]
fn a_closed_sender_holds_up_neither_its_practice_nor_the_others() {
    let mut fair = Fair::default();
    // Practice 1 uses two senders, the first one's messages are the more urgent ones.
    for n in 0..20 {
        fair.insert((1, 7), (FAR + n, id(n)), n as CellNo, n < 5);
        fair.insert((1, 8), (FAR + 100 + n, id(100 + n)), n as CellNo, false);
    }
    fair.insert((2, 7), (FAR + 50, id(900)), 900, false);
    let next = |fair: &mut Fair| {
        let (of, key, _) = fair.first(0)?;
        fair.charge(of, &key, key.0 < FAR + 5, 1, 1);
        Some(of)
    };
    assert_eq!(next(&mut fair), Some((1, 7)));
    fair.close_sender(7, true);
    assert_eq!(fair.practices().collect::<Vec<_>>(), [1], "practice 2 has nothing else");
    let chosen: Vec<_> = (0..21).map(|_| next(&mut fair)).collect();
    assert!(chosen[..20].iter().all(|of| *of == Some((1, 8))), "{chosen:?}");
    assert_eq!(chosen[20], None);
    assert!(!fair.offers() && fair.ready() == 20 && fair.aged() == 4);
    assert_eq!(fair.waiting().collect::<Vec<_>>(), [(1, 19), (2, 1)]);
    // More comes for it meanwhile.
    fair.insert((3, 7), (FAR + 50, id(901)), 901, false);
    assert!(!fair.offers());
    fair.close_sender(7, false);
    let rest: Vec<_> = std::iter::from_fn(|| next(&mut fair)).collect();
    assert_eq!(rest.len(), 21);
    assert_eq!(rest[..2].iter().filter(|(practice_no, _)| *practice_no == 1).count(), 0, "{rest:?}");
    assert_eq!((fair.ready(), fair.aged()), (0, 0));
}
