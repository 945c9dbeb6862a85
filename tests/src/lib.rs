//! Suites over the whole product. `tests/tidy` reads the sources; the others start real processes.
//!
//! What they share: [`rig`] starts a cluster and talks to it, [`api`] makes requests and reads refusals, [`steps`] runs
//! named steps on one cluster, [`canary`] looks for marks in files, [`window`] counts what a carrier received.
//!
//! [`sim`] is the deterministic simulator: no process, no socket, one thread.

pub mod api;
pub mod canary;
pub mod rig;
pub mod sim;
pub mod steps;
pub mod window;
