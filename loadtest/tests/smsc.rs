//! The carrier simulator over real sockets, driven by a small SMPP client.

#[path = "smsc/client.rs"]
mod client;
#[path = "smsc/faults.rs"]
mod faults;
#[path = "smsc/load.rs"]
mod load;
#[path = "smsc/process.rs"]
mod process;
#[path = "smsc/receipts.rs"]
mod receipts;
#[path = "smsc/rest.rs"]
mod rest;
#[path = "smsc/session.rs"]
mod session;
#[path = "smsc/truth.rs"]
mod truth;
