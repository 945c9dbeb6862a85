//! Small file helpers of the log stores: what a directory occupies, and the lock of a data directory.
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Bytes that the files directly in `dir` occupy on disk. A file that vanishes meanwhile counts as nothing.
pub(super) fn occupied_bytes(dir: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(dir) else { return 0 };
    entries
        .flatten()
        .filter_map(|entry| entry.metadata().ok())
        .filter(|m| m.is_file())
        .map(|m| m.blocks() * 512)
        .sum()
}

/// Takes the exclusive lock of a log directory; it lasts as long as the file lives, also across a kill.
pub(super) fn lock_directory(dir: &Path) -> io::Result<File> {
    std::fs::create_dir_all(dir)?;
    let file = File::create(dir.join("OWNER"))?;
    file.try_lock().map_err(|error| {
        io::Error::new(
            io::ErrorKind::WouldBlock,
            format!("{} is in use by another process: {error}", dir.display()),
        )
    })?;
    Ok(file)
}

/// Makes new and removed names in `dir` durable.
pub(super) fn sync_directory(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
