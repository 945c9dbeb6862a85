//! A small ext4 file system in a file, mounted over a node's data directory. Needs root and loop devices.
use carillon_tests::rig::Rig;
use std::path::PathBuf;
use std::process::Command;

fn run(program: &str, arguments: &[&str]) -> Result<(), String> {
    let output = Command::new(program).args(arguments).output().map_err(|e| format!("{program}: {e}"))?;
    match output.status.success() {
        true => Ok(()),
        false => Err(format!("{program} {arguments:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

/// Why no volume can be mounted here.
pub fn unavailable() -> Option<String> {
    let dir = tempfile::tempdir().ok()?;
    let (image, mount) = (dir.path().join("image"), dir.path().join("mount"));
    std::fs::create_dir(&mount).ok()?;
    let tried = make(&image, 16)
        .and_then(|()| run("mount", &["-o", "loop", &image.to_string_lossy(), &mount.to_string_lossy()]))
        .and_then(|()| run("umount", &[&mount.to_string_lossy()]));
    tried.err()
}

fn make(image: &std::path::Path, mib: u64) -> Result<(), String> {
    let file = std::fs::File::create(image).map_err(|e| e.to_string())?;
    file.set_len(mib << 20).map_err(|e| e.to_string())?;
    // No blocks for root: what is free is free for all.
    run("mkfs.ext4", &["-q", "-F", "-m", "0", &image.to_string_lossy()])
}

/// Unmounted when dropped.
pub struct Volume {
    pub mount: PathBuf,
}

impl Volume {
    /// Moves the data of a stopped node to a volume of its own.
    pub fn under_node(rig: &Rig, node: u64, mib: u64) -> Self {
        let data = rig.lab.data_dir(node);
        let (image, old) = (data.with_file_name("image"), data.with_file_name("data.old"));
        make(&image, mib).unwrap();
        std::fs::rename(&data, &old).unwrap();
        std::fs::create_dir(&data).unwrap();
        run("mount", &["-o", "loop", &image.to_string_lossy(), &data.to_string_lossy()]).unwrap();
        let volume = Self { mount: data };
        run("cp", &["-a", &format!("{}/.", old.display()), &volume.mount.to_string_lossy()]).unwrap();
        volume
    }
}

impl Drop for Volume {
    fn drop(&mut self) {
        // Lazy: a process may still be inside after a failed step.
        if let Err(reason) = run("umount", &["-l", &self.mount.to_string_lossy()]) {
            carillon_tests::steps::say(&reason);
        }
    }
}
