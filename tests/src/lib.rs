//! Suites over the whole product. `tests/tidy` reads the sources; the others start real processes.
//!
//! What they share: [`rig`] starts a cluster and talks to it, [`api`] makes requests and reads refusals, [`steps`] runs
//! named steps on one cluster, [`canary`] looks for marks in files, [`window`] counts what a carrier received. For
//! faults: [`faults`] hurts nodes, [`load`] keeps callers going and writes what they saw, [`evidence`] asks everybody
//! afterwards, [`history`] compares, [`trial`] puts them together, [`nemesis`] draws faults from a seed.
//!
//! [`sim`] is the deterministic simulator: no process, no socket, one thread.

pub mod api;
pub mod canary;
pub mod evidence;
pub mod faults;
pub mod history;
pub mod load;
pub mod nemesis;
pub mod rig;
pub mod sim;
pub mod steps;
pub mod trial;
pub mod window;
