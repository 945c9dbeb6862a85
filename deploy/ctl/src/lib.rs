//! What operators and tests need to run a cluster: certificates, a lab on one machine, and the admin API.
//!
//! The binary `carillonctl` is a thin shell around this library; the test suites start their clusters with [`lab::Lab`].

pub mod admin;
pub mod backup;
pub mod delivery;
pub mod health;
pub mod lab;
mod lanes;
pub mod pki;
