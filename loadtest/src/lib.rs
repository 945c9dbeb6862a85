//! The load harness of Carillon: the carrier simulator and everything that
//! drives a cluster from outside and proves what it did.

pub mod smsc;
