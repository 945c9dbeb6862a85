//! Arms the fail points of a lab node (see `failpoints.rs` of carillon-node): one file in its data directory, which a
//! running node reads again within milliseconds.

use std::path::Path;

/// What a node reads.
const FILE: &str = "failpoints.txt";

/// Arms these points, `name` and actions each, and no others.
pub fn arm(data_dir: &Path, points: &[(&str, &str)]) -> std::io::Result<()> {
    let text: String = points.iter().map(|(name, actions)| format!("{name}={actions}\n")).collect();
    let new = data_dir.join("failpoints.new");
    fs_err::write(&new, text)?;
    fs_err::rename(new, data_dir.join(FILE))
}

/// Arms none; also before the next start.
pub fn disarm(data_dir: &Path) -> std::io::Result<()> {
    arm(data_dir, &[])
}
