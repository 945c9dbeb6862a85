//! The promises of a connector, held against a scripted SMSC on a real TCP listener: every fault that the carrier's
//! side of the wire can have, each with the exact outcome it must become. The tests play the carrier by hand, PDU by
//! PDU, so nothing depends on timing that a test does not set.

//! What every connector must do is in suite.rs, written once against [`fixture::CarrierUnderTest`] and run for each of
//! them. The other files hold what only one protocol has.

mod api;
mod faults;
mod fixture;
mod lane;
mod outcomes;
mod receipts;
mod smpp_fixture;
mod suite;
mod support;
mod tls;
mod twilio;
mod twilio_fixture;
mod versions;
