//! The load harness of Carillon: the carrier simulator and everything that
//! drives a cluster from outside and proves what it did.

pub mod bench;
pub mod bulk;
pub mod carrier;
pub mod client;
pub mod demo;
mod hex128;
pub mod http;
pub mod lab;
pub mod ledger;
pub mod proc;
pub mod run;
pub mod sample_day;
pub mod scrape;
pub mod smsc;
pub mod watch;
