//! The promises of a connector, held against a scripted SMSC on a real TCP listener: every fault that the carrier's
//! side of the wire can have, each with the exact outcome it must become. The tests play the carrier by hand, PDU by
//! PDU, so nothing depends on timing that a test does not set.

mod faults;
mod lane;
mod outcomes;
mod receipts;
mod support;
mod tls;
