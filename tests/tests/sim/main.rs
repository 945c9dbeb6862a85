//! The simulator as a suite: fixed regression seeds, fresh seeds, planted bugs. `cargo sim` runs it by hand.
//!
//! A failing seed prints the line that repeats it. `SEED=n` makes the fresh seeds begin at n.
mod planted;
mod seeds;
