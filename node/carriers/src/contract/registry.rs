//! The contracts of a node: the built-in ones, and those of its contracts directory, which take their place by name.
//!
//! Invariants
//!  - A connector holds a [`ContractHandle`] and looks at it for each message: a new version counts from the next one on.
//!  - A file that cannot be used changes nothing: the version that was loaded goes on, and the error is told at every
//!    look until the file is right.
//!  - A contract that connectors use never goes away; when its file does, the built-in one of that name comes back.
use super::{Contract, ContractError};
use parking_lot::{Mutex, RwLock};
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

const FILES_MAX: usize = 256;
const FILE_BYTES_MAX: u64 = 256 * 1024;
const BUILT_IN: [(&str, &str); 2] = [
    ("smpp-generic.toml", include_str!("../../contracts/smpp-generic.toml")),
    ("twilio.toml", include_str!("../../contracts/twilio.toml")),
];

/// One contract, always in its newest version. Cheap to clone.
#[derive(Debug, Clone)]
pub struct ContractHandle(Arc<RwLock<Arc<Contract>>>);

impl ContractHandle {
    /// A contract that nobody reloads.
    pub fn fixed(contract: Contract) -> Self {
        Self(Arc::new(RwLock::new(Arc::new(contract))))
    }

    /// The built-in contract of this name.
    pub fn built_in(name: &str) -> Option<Self> {
        built_in().into_iter().find(|contract| contract.name == name).map(Self::fixed)
    }

    pub fn get(&self) -> Arc<Contract> {
        self.0.read().clone()
    }
}

fn built_in() -> Vec<Contract> {
    let parse = |(file, text): &(&str, &str)| Contract::parse(file, text).expect("a test reads them all");
    BUILT_IN.iter().map(parse).collect()
}

/// A contract as operators see it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Listed {
    pub name: String,
    pub version: u32,
    /// From the contracts directory, not built in.
    pub from_file: bool,
}

/// What a look at the directory brought.
#[derive(Debug, Default)]
pub struct Reload {
    /// Name and version of what is new.
    pub changed: Vec<(String, u32)>,
    pub errors: Vec<ContractError>,
}

struct Entry {
    handle: ContractHandle,
    from_file: bool,
}

/// Cheap to clone.
#[derive(Clone)]
pub struct Contracts {
    dir: Option<PathBuf>,
    entries: Arc<RwLock<BTreeMap<String, Entry>>>,
    /// One look at a time.
    looking: Arc<Mutex<()>>,
}

impl Contracts {
    /// The built-in ones and those of `dir`. Every file must be right: a node does not start on half of them.
    pub fn load(dir: Option<&Path>) -> Result<Self, ContractError> {
        let entry = |contract: Contract| {
            (contract.name.clone(), Entry { handle: ContractHandle::fixed(contract), from_file: false })
        };
        let contracts = Self {
            dir: dir.map(Path::to_owned),
            entries: Arc::new(RwLock::new(built_in().into_iter().map(entry).collect())),
            looking: Arc::default(),
        };
        match contracts.look(true).errors.into_iter().next() {
            Some(error) => Err(error),
            None => Ok(contracts),
        }
    }

    pub fn get(&self, name: &str) -> Option<ContractHandle> {
        self.entries.read().get(name).map(|entry| entry.handle.clone())
    }

    pub fn list(&self) -> Vec<Listed> {
        let entries = self.entries.read();
        let listed = |(name, entry): (&String, &Entry)| Listed {
            name: name.clone(),
            version: entry.handle.get().version,
            from_file: entry.from_file,
        };
        entries.iter().map(listed).collect()
    }

    /// Reads the directory again. Reads files: not for a thread that must not wait.
    pub fn reload(&self) -> Reload {
        self.look(false)
    }

    fn look(&self, first: bool) -> Reload {
        let _one = self.looking.lock();
        let mut reload = Reload::default();
        let Some(dir) = &self.dir else { return reload };
        let files = match read_dir(dir) {
            Ok(files) => files,
            Err(error) => {
                let (path, reason) = (dir.display().to_string(), error.to_string());
                reload.errors.push(ContractError::Directory { path, reason });
                return reload;
            }
        };
        let mut seen = Vec::new();
        for (file, text) in files {
            match Contract::parse(&file, &text) {
                Ok(contract) if seen.contains(&contract.name) => {
                    let (field, rule) = ("name".to_owned(), "is that of another file".to_owned());
                    reload.errors.push(ContractError::Field { file, field, rule });
                }
                Ok(contract) => {
                    seen.push(contract.name.clone());
                    self.take(contract, first, &mut reload);
                }
                Err(error) => {
                    // Whatever it was called, it goes on: no name is taken for gone while a file cannot be read.
                    reload.errors.push(error);
                }
            }
        }
        if reload.errors.is_empty() {
            self.restore_built_in(&seen, &mut reload);
        }
        reload
    }

    fn take(&self, contract: Contract, first: bool, reload: &mut Reload) {
        let (name, version) = (contract.name.clone(), contract.version);
        let mut entries = self.entries.write();
        let Some(entry) = entries.get_mut(&name) else {
            entries.insert(name.clone(), Entry { handle: ContractHandle::fixed(contract), from_file: true });
            reload.changed.push((name, version));
            return;
        };
        let loaded = entry.handle.get();
        if *loaded == contract {
            entry.from_file = true;
            return;
        }
        let error = if loaded.protocol != contract.protocol {
            Some(ContractError::OtherProtocol { name: name.clone() })
        } else if first || !entry.from_file {
            // An operator's file takes the place of a built-in one whatever its number is.
            None
        } else if version == loaded.version {
            Some(ContractError::SameVersion { name: name.clone(), version })
        } else if version < loaded.version {
            Some(ContractError::OlderVersion { name: name.clone(), version, loaded: loaded.version })
        } else {
            None
        };
        if let Some(error) = error {
            reload.errors.push(error);
            return;
        }
        entry.from_file = true;
        *entry.handle.0.write() = Arc::new(contract);
        reload.changed.push((name, version));
    }

    /// The file of a contract that is built in, too, is gone.
    fn restore_built_in(&self, seen: &[String], reload: &mut Reload) {
        let mut entries = self.entries.write();
        for contract in built_in() {
            if let Some(entry) = entries.get_mut(&contract.name)
                && entry.from_file
                && !seen.contains(&contract.name)
            {
                entry.from_file = false;
                reload.changed.push((contract.name.clone(), contract.version));
                *entry.handle.0.write() = Arc::new(contract);
            }
        }
    }
}

/// The `.toml` files of a directory, by name.
fn read_dir(dir: &Path) -> io::Result<BTreeMap<String, String>> {
    let mut files = BTreeMap::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.extension().is_none_or(|extension| extension != "toml") {
            continue;
        }
        if files.len() == FILES_MAX {
            return Err(io::Error::other(format!("more than {FILES_MAX} contracts")));
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if std::fs::metadata(&path)?.len() > FILE_BYTES_MAX {
            return Err(io::Error::other(format!("{name} is over {FILE_BYTES_MAX} bytes")));
        }
        files.insert(name, std::fs::read_to_string(&path)?);
    }
    Ok(files)
}
