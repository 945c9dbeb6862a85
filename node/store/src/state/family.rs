//! Names of replica families.
use std::fmt;

/// One generation of one group's replica. A snapshot is installed under the next generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Family {
    pub group: u32,
    pub generation: u64,
}

impl Family {
    pub fn parse(name: &str) -> Option<Self> {
        let (group, generation) = name.strip_prefix('g')?.split_once('.')?;
        let family = Self { group: group.parse().ok()?, generation: generation.parse().ok()? };
        // "g01.1" or "g+1.1" would be a second name of the same replica.
        (family.to_string() == name).then_some(family)
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "g{}.{}", self.group, self.generation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_canonical_name_parses() {
        let family = Family { group: 12, generation: 3 };
        assert_eq!(Family::parse("g12.3"), Some(family));
        assert_eq!(
            Family::parse(&Family { group: u32::MAX, generation: u64::MAX }.to_string()).unwrap().group,
            u32::MAX
        );
        for name in ["default", "g12", "g012.3", "g+12.3", "12.3", "g12.3.4", "g12.x", "g.1", ""] {
            assert_eq!(Family::parse(name), None, "{name}");
        }
    }
}
