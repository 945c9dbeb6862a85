//! The schedule of an open loop, fixed before the first send.
//!
//! Owns: the rate over time ([`Shape`]) and the times of sending ([`Arrivals`]), which are where the integral of the rate
//! passes a whole request. Invariants: the same scenario and seed give the same times; workers that share a schedule take
//! every n-th arrival each, so together they send exactly the schedule of one.

use std::time::Duration;

use super::scenario::{Arrivals as Gaps, Phase, Scenario};
use crate::sample_day::dice::Dice;

/// A stretch in which the rate goes in a straight line.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Piece {
    from_s: f64,
    length_s: f64,
    from_per_s: f64,
    to_per_s: f64,
    /// Messages before it.
    before: f64,
}

impl Piece {
    fn messages(&self) -> f64 {
        (self.from_per_s + self.to_per_s) / 2.0 * self.length_s
    }

    /// When so many messages of this piece are due.
    fn time_of(&self, messages: f64) -> f64 {
        let slope = (self.to_per_s - self.from_per_s) / self.length_s;
        if slope.abs() < 1e-9 {
            return self.from_s + messages / self.from_per_s.max(1e-12);
        }
        // from * t + slope * t^2 / 2 = messages
        let root = (self.from_per_s * self.from_per_s + 2.0 * slope * messages).max(0.0).sqrt();
        self.from_s + ((root - self.from_per_s) / slope).clamp(0.0, self.length_s)
    }
}

/// The rate over the whole run.
#[derive(Clone, Debug, PartialEq)]
pub struct Shape {
    pieces: Vec<Piece>,
}

fn lines(phase: &Phase) -> Vec<(f64, f64, f64)> {
    match &phase.curve {
        Some(points) => {
            let highest = points.iter().copied().fold(0.0, f64::max).max(1e-12);
            let length_s = phase.duration_s / (points.len() - 1) as f64;
            let rate = |point: f64| point / highest * phase.rate_per_s;
            points.windows(2).map(|pair| (length_s, rate(pair[0]), rate(pair[1]))).collect()
        }
        None => {
            vec![(phase.duration_s, phase.from_per_s.unwrap_or(phase.rate_per_s), phase.rate_per_s)]
        }
    }
}

impl Shape {
    pub fn new(phases: &[Phase]) -> Self {
        let (mut pieces, mut from_s, mut before) = (Vec::new(), 0.0, 0.0);
        for (length_s, from_per_s, to_per_s) in phases.iter().flat_map(lines) {
            let piece = Piece { from_s, length_s, from_per_s, to_per_s, before };
            from_s += length_s;
            before += piece.messages();
            pieces.push(piece);
        }
        Self { pieces }
    }

    /// Messages asked for in the whole run.
    pub fn messages(&self) -> f64 {
        self.pieces.last().map_or(0.0, |last| last.before + last.messages())
    }

    pub fn length_s(&self) -> f64 {
        self.pieces.last().map_or(0.0, |last| last.from_s + last.length_s)
    }

    /// Messages per second that are asked for at `at_s`.
    pub fn rate_at(&self, at_s: f64) -> f64 {
        let here = |piece: &&Piece| (piece.from_s..piece.from_s + piece.length_s).contains(&at_s);
        self.pieces.iter().find(here).map_or(0.0, |piece| {
            piece.from_per_s + (piece.to_per_s - piece.from_per_s) * (at_s - piece.from_s) / piece.length_s
        })
    }

    /// Messages asked for before `at_s`.
    pub fn messages_until(&self, at_s: f64) -> f64 {
        let within = |piece: &Piece| {
            let at_s = (at_s - piece.from_s).clamp(0.0, piece.length_s);
            let slope = (piece.to_per_s - piece.from_per_s) / piece.length_s;
            piece.from_per_s * at_s + slope * at_s * at_s / 2.0
        };
        self.pieces.iter().map(within).sum()
    }

    /// When the message with this number (from 0) is due to be sent; `None` after the end.
    pub fn time_of(&self, messages: f64) -> Option<f64> {
        let at = self.pieces.partition_point(|piece| piece.before + piece.messages() <= messages);
        self.pieces.get(at).map(|piece| piece.time_of(messages - piece.before))
    }

    /// The times of sending of one worker of `workers`.
    pub fn arrivals(&self, scenario: &Scenario, worker: u64, workers: u64) -> Arrivals {
        let dice = match scenario.arrivals {
            Gaps::Even => None,
            Gaps::Poisson => Some(Dice::new(scenario.seed ^ 0x706f_6973)),
        };
        let step = scenario.generator.batch() as f64;
        Arrivals { shape: self.clone(), step, due: 0.0, dice, next: 0, worker, workers }
    }
}

/// Times of sending, counted from the start, rising.
pub struct Arrivals {
    shape: Shape,
    /// Messages in one arrival.
    step: f64,
    due: f64,
    dice: Option<Dice>,
    next: u64,
    worker: u64,
    workers: u64,
}

impl Arrivals {
    fn one(&mut self) -> Option<Duration> {
        let gap = match &mut self.dice {
            // 1 - u is never 0.
            Some(dice) => -(1.0 - dice.unit()).ln(),
            None => 1.0,
        };
        if self.dice.is_some() {
            self.due += gap * self.step;
        }
        let at_s = self.shape.time_of(self.due)?;
        if self.dice.is_none() {
            self.due += self.step;
        }
        Some(Duration::from_secs_f64(at_s))
    }
}

impl Iterator for Arrivals {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        loop {
            let at = self.one()?;
            let mine = self.next % self.workers == self.worker;
            self.next += 1;
            if mine {
                return Some(at);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn scenario(text: &str) -> Scenario {
        Scenario::parse("x", &format!("name = \"x\"\n{text}")).unwrap()
    }

    fn times(scenario: &Scenario, worker: u64, workers: u64) -> Vec<Duration> {
        Shape::new(&scenario.phases).arrivals(scenario, worker, workers).collect()
    }

    #[test]
    fn an_even_schedule_has_equal_gaps_and_a_ramp_has_its_integral() {
        let flat = scenario("[generator]\nbatch = 10\n[[phase]]\nduration_s = 2\nrate_per_s = 100\n");
        let at = times(&flat, 0, 1);
        assert_eq!(at.len(), 20);
        assert!(at.iter().enumerate().all(|(n, at)| (at.as_secs_f64() - n as f64 * 0.1).abs() < 1e-9));
        let ramp = scenario(
            "[generator]\nkind = \"unary\"\n[[phase]]\nduration_s = 10\nrate_per_s = 100\nfrom_per_s = 0\n[[phase]]\nduration_s = 1\nrate_per_s = 7\n",
        );
        let at = times(&ramp, 0, 1);
        assert_eq!(at.len(), 507);
        // Half of the time, a quarter of the messages.
        let early = at.iter().filter(|at| at.as_secs_f64() < 5.0).count();
        assert!((124..=126).contains(&early), "{early}");
        assert!(at.windows(2).all(|pair| pair[0] <= pair[1]));
        let shape = Shape::new(&ramp.phases);
        assert_eq!((shape.length_s(), shape.messages().round()), (11.0, 507.0));
        assert!((shape.messages_until(5.0) - 125.0).abs() < 1e-6);
        assert!((shape.rate_at(5.0) - 50.0).abs() < 1e-9 && (shape.rate_at(10.5) - 7.0).abs() < 1e-9);
    }

    #[test]
    fn a_curve_passes_its_points_and_a_pause_sends_nothing() {
        let curve = scenario(
            "[generator]\nkind = \"unary\"\n[[phase]]\nduration_s = 4\nrate_per_s = 100\ncurve = [0, 2, 0]\n[[phase]]\nduration_s = 3\nrate_per_s = 0\n[[phase]]\nduration_s = 1\nrate_per_s = 5\n",
        );
        let at = times(&curve, 0, 1);
        assert_eq!(at.len(), 205);
        assert!(!at.iter().any(|at| (4.001..6.999).contains(&at.as_secs_f64())));
        assert!((Shape::new(&curve.phases).rate_at(1.0) - 50.0).abs() < 1e-9);
    }

    #[test]
    fn random_gaps_come_from_the_seed_and_workers_share_one_schedule() {
        let text = "arrivals = \"poisson\"\n[[phase]]\nduration_s = 20\nrate_per_s = 2000\n";
        let poisson = scenario(text);
        let all = times(&poisson, 0, 1);
        assert!((1_800..2_200).contains(&all.len()), "{}", all.len());
        assert_eq!(all, times(&poisson, 0, 1));
        assert_ne!(all, times(&scenario(&format!("seed = 2\n{text}")), 0, 1));
        let mut shared: Vec<_> = (0..3).flat_map(|worker| times(&poisson, worker, 3)).collect();
        shared.sort();
        assert_eq!(shared, all);
    }
}
