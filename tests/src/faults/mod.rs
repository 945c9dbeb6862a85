//! What a machine can do to a node, made with the kernel's own means: networks that lose packets ([`Net`]), disks that
//! lose what was not synced ([`Disk`]), clocks that jump ([`Clock`]); and where a cluster that can be treated so lives
//! ([`Arena`]).
//!
//! Invariants: nothing outside the cluster's own namespaces, images and processes is touched; everything is undone when
//! the value is dropped, and what a killed run left behind is removed by the next one (names carry the pid). Does not:
//! need unsafe code; the kernel is asked through its tools (`ip`, `nft`, `mount`, `xfs_io`), and a machine that lacks
//! one says so before anything starts ([`missing`]).

mod arena;
mod clock;
mod disk;
mod failpoints;
mod net;
mod tool;

pub use arena::{Arena, Needs, missing};
pub use clock::Clock;
pub use disk::Disk;
pub use failpoints::{arm, disarm};
pub use net::{HOST, Net};
